"""What replaces the slots whose experts are not read: the targets of ``fill_rules.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fill_choices import Step


@dataclass
class Slots:
    """What replaces the slots whose experts are not read; rows of all groups, ``[R, K]`` and ``[R, E]``.

    Attributes:
        step: The step.
        ids, w: ``[R, K]``.
        inside: ``[R, E]``; P of the row's group.
        lost: ``[R, K]``.
    """

    step: Step
    ids: Tensor
    w: Tensor
    inside: Tensor
    lost: Tensor

    def own(self) -> Tensor:
        """The row's own kept weights by expert over its largest weight, ``[R, E]``."""
        share = torch.where(self.lost, 0.0, self.w / self.w.amax(1, keepdim=True))
        return torch.zeros_like(self.inside, dtype=torch.float64).scatter(1, self.ids, share)

    def nearest(self, table: Tensor, bonus: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The best of P for each slot by similarity plus the row's bonus: ids, similarities."""
        near = table[self.ids]
        score = near if bonus is None else near + bonus[:, None, :]
        ids = torch.where(self.inside[:, None, :], score, -9.0).argmax(2)
        return ids, near.gather(2, ids[..., None])[..., 0]

    def put(self, ids: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the lost slots."""
        return torch.where(self.lost, ids, self.ids), torch.where(self.lost, w, self.w)


def similar(slots: Slots, metric: str = "projection", shrink: float = 1.0, **how: float) -> Any:
    """The most similar expert of P, perhaps with a bonus for the row's own scores, with its factor.

    ``scores``: times the router's relative probability; ``own``: times the relative weight of the row's own
    kept slots; ``only``: no substitute but the row's own experts; ``least``: no substitute below that
    similarity; ``gain``: none that gives less than that share of the row's Σ w², as ``min_gain`` does;
    ``tail``: nor a slot that stays, other than the row's heaviest, whose w² is less than that share;
    ``tie``: of the experts within that distance of the best, the one the router prefers; ``factors=0``: none.
    """
    facts = slots.step.facts
    table = facts.similarity[metric]
    bonus = None
    if "scores" in how:
        bonus = how["scores"] * slots.step.relative
    if "own" in how:
        bonus = how["own"] * slots.own()
    if "tie" in how:
        near = torch.where(slots.inside[:, None, :], table[slots.ids], -9.0)
        close = near >= near.amax(2, keepdim=True) - how["tie"]
        ids = torch.where(close, slots.step.relative[:, None, :], -9.0).argmax(2)
        similarity = near.gather(2, ids[..., None])[..., 0]
    else:
        ids, similarity = slots.nearest(table, bonus)
    w = slots.w
    if how.get("factors", 1.0) and metric in facts.scale:
        w = w * facts.scale[metric][slots.ids, ids] * shrink
    if "least" in how:
        w = torch.where(similarity >= how["least"], w, 0.0)
    if "gain" in how:
        gain, energy = slots.w.square() * similarity, slots.w.square().sum(1, keepdim=True)
        w = torch.where(gain >= how["gain"] * energy, w, 0.0)
    ids, w = slots.put(ids, w)
    if "tail" in how:
        light = slots.w.square() < how["tail"] * slots.w.square().sum(1, keepdim=True)
        heaviest = slots.w == slots.w.amax(1, keepdim=True)
        w = torch.where(light & ~heaviest & ~slots.lost, 0.0, w)
    return ids, w


def dropped(slots: Slots, renormalize: float = 0.0) -> Any:
    """No substitute; the kept weights times a power of what they grew too little by."""
    w = torch.where(slots.lost, 0.0, slots.w)
    if renormalize:
        w = w * (slots.w.sum(1, keepdim=True) / w.sum(1, keepdim=True).clamp(min=1e-30)) ** renormalize
    return slots.ids.where(~slots.lost, slots.ids.gather(1, slots.w.argmax(1, keepdim=True))), w


def refilled(slots: Slots, whole: float = 1.0) -> Any:
    """The row's next best of P by the router, with its own gate; weights to their old sum (OEA)."""
    relative = slots.step.relative
    taken = torch.zeros_like(slots.inside).scatter(1, slots.ids, ~slots.lost)
    free = torch.where(slots.inside & ~taken, relative, -1.0)
    best, order = free.sort(dim=1, descending=True)
    rank = (slots.lost.long().cumsum(1) - 1).clamp(min=0)
    gate = best.gather(1, rank)
    unit = slots.w.amax(1, keepdim=True)
    ids, w = slots.put(order.gather(1, rank), torch.where(gate >= 0, gate * unit, 0.0))
    return ids, w * (slots.w.sum(1, keepdim=True) / w.sum(1, keepdim=True)) ** whole


def randomly(slots: Slots) -> Any:
    """A random expert of P, unchanged weights."""
    draws = torch.rand(slots.inside.shape[0], slots.ids.shape[1], slots.inside.shape[1])
    return slots.put(torch.where(slots.inside[:, None, :], draws, -1.0).argmax(2), slots.w)


def together(slots: Slots, metric: str = "signed", gates: float = 0.0) -> Any:
    """As many substitutes as were lost, chosen for the row's whole loss: each with the sum of its factors."""
    facts = slots.step.facts
    w = torch.where(slots.lost, slots.w, 0.0)
    factor = facts.scale[metric]
    if metric == "projection":
        factor = factor.clamp(min=0)
    share = (w[..., None] * factor[slots.ids]).sum(1)
    if gates:
        share = share + gates * slots.step.relative * w.sum(1, keepdim=True)
    gain = torch.where(slots.inside, share.square() * facts.cross, -1.0)
    order = gain.argsort(dim=1, descending=True)
    ids = order.gather(1, (slots.lost.long().cumsum(1) - 1).clamp(min=0))
    return slots.put(ids, share.gather(1, ids))


TARGETS: Mapping[str, Callable[..., Any]] = {
    "similar": similar,
    "drop": dropped,
    "refill": refilled,
    "random": randomly,
    "together": together,
}
