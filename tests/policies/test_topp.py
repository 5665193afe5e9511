"""Top-p inside a row's own slots, against plain loops and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sere.policies import TopP
from tests.support.plain_rules import PlainStep, Slot, assert_same, dropped, plain_steps
from tests.support.policies import dense, route, route_worked, top_slots


def plain_prefix(step: PlainStep, t: int, p: float) -> list[Slot]:
    """A row's heaviest slots, as few as have the share ``p`` of its weight."""
    slots = step.valid(t)
    units = [round(step.weight(slot) * 2**30) for slot in slots]
    for count in range(1, len(slots)):
        if sum(units[:count]) >= p * sum(units):
            return slots[:count]
    return slots


@settings(max_examples=60)
@given(step=plain_steps(), p=st.sampled_from([0.01, 0.25, 0.5, 0.8, 0.99, 1.0]), renormalize=st.booleans())
def test_each_row_keeps_the_smallest_prefix_with_its_share(
    step: PlainStep, p: float, renormalize: bool
) -> None:
    """Ids and weights are those of the plain loops."""
    result, _ = route(TopP(p, renormalize), step.E, step.ids, step.weights, **step.given)
    kept = {slot for t in range(step.T) for slot in plain_prefix(step, t, p)}
    assert_same(result, dropped(step, lambda slot: slot in kept, renormalize=renormalize))


def test_rows_that_are_sure_run_fewer_experts() -> None:
    """p=0.5: 0.40 of 0.85, 0.35 of 0.80 are too little, 0.45 of 0.85 is enough."""
    result, _ = route_worked(TopP(0.5))
    assert result.ids.tolist() == [[0, 1, 0], [3, 1, 3], [0, 0, 0]]
    assert dense(result, 1) == pytest.approx([0, 0.25, 0, 0.35, 0, 0])
    result, _ = route_worked(TopP(0.5, renormalize=True))
    assert dense(result, 1) == pytest.approx([0, 0.25 * 0.8 / 0.6, 0, 0.35 * 0.8 / 0.6, 0, 0])


@pytest.mark.parametrize(("p", "kept"), [(0.5, 1), (0.5000001, 2)], ids=["reached", "not quite"])
def test_a_share_that_is_reached_exactly_is_enough(p: float, kept: int) -> None:
    """Two slots of equal weight: the lower one is half of the row."""
    result, _ = route(TopP(p), 4, torch.tensor([[2, 1]]), torch.tensor([[0.25, 0.25]]))
    assert result.ids.tolist() == [[2, 2] if kept == 1 else [2, 1]]


@pytest.mark.parametrize(
    ("weights", "kept"),
    [([1e-12, 2e-12], [1]), ([-0.5, -0.25], [1]), ([math.inf, 300.0], [0]), ([-1.0, 0.5], [1])],
    ids=["below a unit", "negative", "infinite", "one negative"],
)
def test_odd_weights_keep_the_heaviest_slot(weights: list[float], kept: list[int]) -> None:
    """Weights count as numbers from 0 to 256; a row never loses all of its slots."""
    result, _ = route(TopP(0.5), 4, torch.tensor([[2, 1]]), torch.tensor([weights]))
    assert result.weights[0].nonzero().flatten().tolist() == kept
    assert result.ids[0].tolist() == [[2, 1][kept[0]]] * 2


def test_everything_stays_at_a_share_of_one() -> None:
    """p=1 is bitwise identity, for weights below a unit too."""
    ids, weights = top_slots()
    weights[0, 2] = 1e-20
    result, _ = route(TopP(1), 6, ids, weights)
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)
