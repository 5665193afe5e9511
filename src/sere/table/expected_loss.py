"""The expected loss of settings, from a table alone: steps of decoding are drawn from its routing sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sere.errors import InputError, name_some
from sere.reroute.slots import has_weight, mass_units, weight_ranks
from sere.similarity import LayerSimilarity
from sere.table.routing_sample import RoutingSample

# Steps drawn for a batch size: about this many rows in all, but no fewer and no more steps than these.
_ROWS = 1024
_LEAST_STEPS, _MOST_STEPS = 32, 256


class Expected(NamedTuple):
    """What to expect of one layer's steps.

    Attributes:
        error: Share of the energy of the routed experts' output that is lost.
        before: Mean number of experts that a step reads without re-routing.
        after: The same with re-routing.
        pairs: Mean number of slots of a step that keep weight; 0 if nobody counted them.
    """

    error: float
    before: float
    after: float
    pairs: float = 0.0


def expected_error(
    sample: RoutingSample,
    layer: LayerSimilarity,
    index: int,
    active_experts: Sequence[int] | Mapping[int, Sequence[int]],
    batch_sizes: Sequence[int],
    *,
    select_top_k: int = 1,
    threshold: float = 0.0,
    min_gain: float = 0.0,
    cap: bool = False,
    seed: int = 0,
) -> dict[tuple[int, int], Expected]:
    """Estimate what re-routing one layer's decode steps loses, without running the model.

    Each step has one token of each of B texts (more, if the sample has fewer texts). A slot (t, e) that is
    re-routed to p is taken to lose ``w² energy_e (1 - s_ep)``, and one that is given up ``w² energy_e``; the
    error is the sum of that over the sum of ``w² energy_e`` of all slots. So it is an estimate, and only for
    a ``projection`` table with factors.

    Args:
        sample: The table's routing sample.
        layer: The layer's similarities.
        index: Its decoder-layer index.
        active_experts: M, several numbers; or different ones by batch size.
        batch_sizes: B, rows of a step.
        select_top_k: S.
        threshold: ρ.
        min_gain: τ.
        cap: As in `RerouteConfig`.
        seed: Of the draw of steps; the same steps in each layer.

    Returns:
        By (B, M).

    Raises:
        InputError: The sample lacks the layer, or is of another number of experts.

    Source: docs/method.md section 4, "Expected loss".
    """
    if index not in sample.ids:
        there = name_some(list(sample.ids))
        raise InputError(f"index: expected a layer of the sample [{there}], got {index}")
    E = len(sample.energy[index])
    if layer.num_experts != E:
        raise InputError(f"layer: expected E = {E} experts as in the sample, got {layer.num_experts}")
    found: dict[tuple[int, int], Expected] = {}
    for B in batch_sizes:
        grid = active_experts[B] if isinstance(active_experts, Mapping) else active_experts
        rows = draw_steps(sample.starts, B, seed=seed)
        steps = _Steps(sample.ids[index][rows], sample.weights[index][rows], layer, select_top_k)
        lost = _Losses(steps, layer.similarity, sample.energy[index], threshold, min_gain)
        for M, expected in zip(grid, lost.at(grid, cap=cap), strict=True):
            found[B, M] = expected
    return found


def draw_steps(starts: Tensor, batch_size: int, *, seed: int = 0, steps: int | None = None) -> Tensor:
    """Draw the tokens of steps of decoding: one of each of ``batch_size`` texts, as far as there are as many.

    Args:
        starts: Where texts start in the sample, ``[texts + 1]``.
        batch_size: B.
        seed: Of the draw.
        steps: N; None for about a thousand rows in all, and 32 to 256 steps.

    Returns:
        ``[N, B]``, int64, numbers of tokens.
    """
    N = max(_LEAST_STEPS, min(_MOST_STEPS, _ROWS // batch_size)) if steps is None else steps
    generator = torch.Generator(device="cpu").manual_seed(seed * 65_537 + batch_size)
    texts = len(starts) - 1
    rounds = -(-batch_size // texts)
    order = torch.rand(N, rounds, texts, generator=generator, device="cpu").argsort(dim=2)
    chosen = order.reshape(N, rounds * texts)[:, :batch_size]
    lengths = (starts[1:] - starts[:-1])[chosen]
    within = torch.rand(N, batch_size, generator=generator, dtype=torch.float64, device="cpu") * lengths
    return starts[chosen].long() + within.long()


class _Steps:
    """What N steps count, ``[N, E]`` each: the vectorized steps 1 to 3 of the method without keep-lists.

    Attributes:
        occurring: The experts of valid slots.
        kept: How many of them are in kept slots, ``[N]``.
        share: Sum of the squared weights of an expert's slots.
        order: The experts in the order in which they become primary.
        columns: The slots' experts, ``[N, B K]``; E where a slot does not count.
        squares: The slots' squared weights, ``[N, B K]``; 0 where a slot does not count.
        of_row: The sum of these over the slots of the same row, ``[N, B K]``.
        slots: Slots of a step that count, mean.
    """

    def __init__(self, ids: Tensor, weights: Tensor, layer: LayerSimilarity, select_top_k: int) -> None:
        N, E = len(ids), layer.num_experts
        wide = weights.double()
        valid = (ids >= 0) & (ids < E) & has_weight(wide)
        ranks = weight_ranks(wide.flatten(0, 1), valid.flatten(0, 1)).reshape(ids.shape)
        # Slots that do not count go to a column of their own.
        columns = torch.where(valid, ids.long(), E).flatten(1)
        wide = torch.where(valid, wide, 0).flatten(1)

        def summed(values: Tensor) -> Tensor:
            return values.new_zeros(N, E + 1).scatter_add(1, columns, values)[:, :E]

        self.occurring = summed(valid.flatten(1).long()) > 0
        kept = summed((valid & (ranks < select_top_k)).flatten(1).long()) > 0
        self.kept = kept.sum(dim=1)
        self.columns, self.squares = columns, wide.square()
        by_row = self.squares.view(ids.shape).sum(dim=2, keepdim=True)
        self.of_row = by_row.expand(ids.shape).flatten(1)
        self.slots = float(valid.sum()) / N
        self.share = summed(self.squares)
        mass = summed(mass_units(wide)).double()
        if layer.sensitivity is not None:
            mass = mass * layer.sensitivity.cpu().double()
        by_mass = mass.sort(dim=1, descending=True, stable=True).indices
        classes = (self.occurring.int() + kept.int()).gather(1, by_mass)
        self.order = by_mass.gather(1, classes.sort(dim=1, descending=True, stable=True).indices)


class _Losses:
    """The losses of steps for any M: the best similarity to the first 1, 2, ... experts in their order."""

    def __init__(
        self, steps: _Steps, similarity: Tensor, energy: Tensor, threshold: float, min_gain: float
    ) -> None:
        self._steps = steps
        self._similarity = similarity.cpu().nan_to_num(nan=-1)
        self._threshold = torch.tensor(threshold, dtype=torch.float32, device="cpu")
        self._min_gain = min_gain
        self._of_expert = energy.double().nan_to_num(nan=0)
        self._energy = steps.share * self._of_expert

    def at(self, grid: Sequence[int], *, cap: bool) -> list[Expected]:
        """Return what to expect at each M of ``grid``."""
        steps = self._steps
        occurring = steps.occurring.sum(dim=1)
        least = torch.zeros_like(steps.kept) if cap else steps.kept
        sizes = [torch.minimum(occurring, least.clamp(min=M)) for M in grid]
        largest = max((int(size.max()) for size in sizes), default=0)
        best = self._similarity.T[steps.order[:, :largest]].cummax(dim=1).values  # [N, largest, E]
        rank = torch.empty_like(steps.order)
        rank.scatter_(1, steps.order, torch.arange(rank.shape[1], device="cpu").expand_as(rank))
        total, before = float(self._energy.sum()), float(occurring.double().mean())
        return [self._one(size, best, rank, total, before) for size in sizes]

    def _one(self, size: Tensor, best: Tensor, rank: Tensor, total: float, before: float) -> Expected:
        if best.shape[1] == 0:
            return Expected(0.0, before, before, self._steps.slots)
        at = (size - 1).clamp(min=0)
        nearest = best[torch.arange(len(size), device="cpu"), at]
        secondary = self._steps.occurring & (rank >= size[:, None])
        replaced = secondary & (nearest >= self._threshold) & (size > 0)[:, None]
        lost = float((self._energy * (1 - nearest) * replaced).sum())
        after = before - float(replaced.sum(dim=1).double().mean())
        more, given_up = self._given_up(nearest, replaced)
        error = (lost + more) / total if total > 0 else 0.0
        return Expected(error, before, after, self._steps.slots - given_up)

    def _given_up(self, nearest: Tensor, replaced: Tensor) -> tuple[float, float]:
        """Return what is lost beside the re-routing, and how many slots a step gives up for it, mean."""
        if self._min_gain == 0:
            return 0.0, 0.0
        steps = self._steps
        # A slot that does not count has no expert: it is at the column after the last.
        gains = steps.squares * _at(nearest, steps.columns)
        low = _at(replaced, steps.columns) & (gains < self._min_gain * steps.of_row)
        energy = _at(self._of_expert.expand(len(low), -1), steps.columns)
        return float((gains * energy * low).sum()), float(low.sum()) / len(low)


def _at(values: Tensor, columns: Tensor) -> Tensor:
    """Return the values ``[N, E]`` of the slots' experts, and 0 of slots that do not count."""
    return pad(values, (0, 1)).gather(1, columns)
