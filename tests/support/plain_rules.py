"""Routing rules in plain loops: a step as lists, and what every rule does to rows and slots alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from sere.policies import LayerShape
from sere.policies.baseline import LayerBatch
from sere.policies.gates import gates_from_scores
from sere.reroute import Routing, TokenBatch

Slot = tuple[int, int]


@dataclass
class PlainStep:
    """One step, as the plain loops read it; docs/method.md section 4, steps 1 and 2."""

    ids: Tensor
    weights: Tensor
    scores: Tensor
    budgets: Tensor
    E: int

    def __repr__(self) -> str:
        return f"PlainStep({self.ids!r}, {self.weights!r}, {self.scores!r}, {self.budgets!r}, {self.E})"

    @property
    def given(self) -> Mapping[str, Tensor]:
        """What a router gets beside ids and weights."""
        return {"router_scores": self.scores, "row_budgets": self.budgets}

    @property
    def T(self) -> int:
        """Rows."""
        return self.ids.shape[0]

    @property
    def K(self) -> int:
        """Slots per row."""
        return self.ids.shape[1]

    def id(self, slot: Slot) -> int:
        """A slot's expert."""
        return int(self.ids[slot])

    def weight(self, slot: Slot) -> float:
        """A slot's weight."""
        return float(self.weights[slot])

    def is_real(self, t: int) -> bool:
        """Whether a row is not padding."""
        return int(self.budgets[t]) >= 0 or int(self.budgets[t]) == -2

    def is_protected(self, t: int) -> bool:
        """Whether a row keeps what it has."""
        return int(self.budgets[t]) >= self.K

    def open_rows(self) -> list[int]:
        """The real rows that are not protected."""
        return [t for t in range(self.T) if self.is_real(t) and not self.is_protected(t)]

    def valid(self, t: int) -> list[Slot]:
        """A row's slots that count, the heaviest first (ties: the lower slot); none of a padding row."""
        if not self.is_real(t):
            return []
        slots = [(t, k) for k in range(self.K) if 0 <= self.id((t, k)) < self.E and self.weight((t, k)) != 0]
        return sorted(slots, key=lambda slot: -self.weight(slot))

    def kept(self, t: int, select_top_k: int) -> list[Slot]:
        """A row's heaviest slots, as many as its budget says."""
        budget = int(self.budgets[t])
        return self.valid(t)[: select_top_k if budget == -2 else budget]

    def protected_experts(self) -> set[int]:
        """The experts of protected rows."""
        return {self.id(slot) for t in range(self.T) if self.is_protected(t) for slot in self.valid(t)}

    def gates(self) -> Tensor:
        """What the router would give each expert, ``[T, E]``."""
        batch = TokenBatch(self.ids, self.weights, self.budgets, None, self.scores)
        layer = LayerShape(0, self.E, self.K)
        return gates_from_scores(LayerBatch.of(layer, batch, torch.tensor(1), {}), "plain")


def finished(step: PlainStep, row: Callable[[int], Mapping[Slot, tuple[int, float]]]) -> Routing:
    """Change the valid slots of rows that are not protected; send padding to the lowest expert that runs.

    Args:
        step: The step.
        row: A row's new ids and weights by slot.
    """
    ids, weights = step.ids.clone(), step.weights.double()
    for t in range(step.T):
        if step.is_real(t) and not step.is_protected(t):
            for slot, (new_id, new_weight) in row(t).items():
                ids[slot], weights[slot] = new_id, new_weight
    running = {int(ids[slot]) for t in range(step.T) for slot in step.valid(t) if float(weights[slot]) != 0}
    if not running:
        return Routing(step.ids, step.weights)
    for t in range(step.T):
        for k in range(step.K):
            if not step.is_real(t) and 0 <= step.id((t, k)) < step.E:
                ids[t, k], weights[t, k] = min(running), 0.0
    return Routing(ids, weights.to(step.weights.dtype))


def dropped(step: PlainStep, is_kept: Callable[[Slot], bool], *, renormalize: bool) -> Routing:
    """Free every valid slot that is not kept.

    Args:
        step: The step.
        is_kept: Whether a valid slot stays.
        renormalize: Whether the rest gets the row's old sum.
    """
    running = {
        step.id(slot)
        for t in range(step.T)
        for slot in step.valid(t)
        if is_kept(slot) or step.is_protected(t)
    }

    def row(t: int) -> dict[Slot, tuple[int, float]]:
        slots = step.valid(t)
        kept = [slot for slot in slots if is_kept(slot)]
        spare = step.id(kept[0]) if kept else min(running, default=0)
        factor = sum(map(step.weight, slots)) / sum(map(step.weight, kept)) if renormalize and kept else 1.0
        return {
            slot: (step.id(slot), factor * step.weight(slot)) if slot in kept else (spare, 0.0)
            for slot in slots
        }

    return finished(step, row)


def plain_refill(step: PlainStep, allowed: set[int]) -> Routing:
    """Let rows choose again inside a set, with the sum of weights that they had."""
    gates = step.gates()

    def row(t: int) -> dict[Slot, tuple[int, float]]:
        slots = step.valid(t)
        own = {step.id(slot) for slot in slots}
        free = sorted(allowed - own, key=lambda expert: (-float(gates[t, expert]), expert))
        best = min(allowed, key=lambda expert: (-float(gates[t, expert]), expert), default=0)
        spare = next((step.id(slot) for slot in slots if step.id(slot) in allowed), best)
        new = {}
        for slot in sorted(slots):
            if step.id(slot) in allowed:
                new[slot] = (step.id(slot), step.weight(slot))
            elif free:
                expert = free.pop(0)
                new[slot] = (expert, float(gates[t, expert]))
            else:
                new[slot] = (spare, 0.0)
        factor = sum(map(step.weight, slots)) / max(1e-300, sum(weight for _, weight in new.values()))
        return {slot: (expert, weight * factor) for slot, (expert, weight) in new.items()}

    return finished(step, row)


def assert_same(result: Routing, expected: Routing) -> None:
    """The same ids, and weights up to the rounding of float32."""
    assert torch.equal(result.ids, expected.ids)
    torch.testing.assert_close(result.weights, expected.weights, rtol=1e-6, atol=1e-9)


@st.composite
def plain_steps(draw: st.DrawFn) -> PlainStep:
    """Steps of a softmax router, with equal weights, ids outside, empty slots, padding and protected rows."""
    E, T = draw(st.integers(1, 8)), draw(st.integers(0, 5))
    K = draw(st.integers(1, min(4, E)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    logits = 1.5 * torch.randn(T, E, generator=generator)
    weights, ids = logits.softmax(1).topk(K, dim=1)
    if draw(st.booleans()):
        # Equal ones, exact in any sum.
        weights = (weights * 8).ceil() / 8
    order = torch.rand(T, K, generator=generator).argsort(1)
    ids, weights = ids.gather(1, order), weights.gather(1, order)
    for _ in range(draw(st.integers(0, 2)) if T else 0):
        at = draw(st.integers(0, T - 1)), draw(st.integers(0, K - 1))
        if draw(st.booleans()):
            ids[at] = draw(st.sampled_from([-1, E, E + 3]))
        else:
            weights[at] = 0.0
    budgets = torch.tensor([draw(st.sampled_from([-2, -2, -2, -1, 0, 1, K])) for _ in range(T)])
    return PlainStep(ids, weights, logits, budgets.long(), E)
