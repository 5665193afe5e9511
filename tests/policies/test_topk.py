"""Top-k reduction against examples worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sere.policies import TopK
from tests.support.policies import dense, route, route_worked, top_slots


def test_topk_keeps_the_heaviest_and_the_sum() -> None:
    """S=2: row 0 keeps 0.40 and 0.30 of 0.85, scaled by 0.85/0.70; the freed slot repeats expert 0 with 0."""
    result, _ = route_worked(TopK(2))
    assert result.ids.tolist() == [[0, 1, 0], [3, 1, 3], [0, 4, 0]]
    assert dense(result, 0) == pytest.approx([0.4 * 0.85 / 0.7, 0.3 * 0.85 / 0.7, 0, 0, 0, 0])
    assert result.weights[:, 2].tolist() == [0, 0, 0]


def test_topk_ranks_by_weight_in_any_slot_order() -> None:
    """A router that returns its slots unsorted loses the lightest, not the last."""
    result, _ = route(TopK(1), 6, torch.tensor([[4, 2, 1]]), torch.tensor([[0.1, 0.2, 0.7]]))
    assert result.ids.tolist() == [[1, 1, 1]]
    assert result.weights.tolist() == [[0, 0, 1]]


def test_topk_counts_freed_slots_as_rerouted() -> None:
    """Top-2 of the example: 6 distinct experts before, {0, 1, 3, 4} after, 3 of 9 slots changed or freed."""
    _, seen = route_worked(TopK(2))
    assert seen == {
        "steps": 1, "rows": 3, "distinct_before": 6, "distinct_after": 4, "slots": 9, "slots_rerouted": 3,
        "slots_computed": 6, "critical": 0,
    }  # fmt: skip
    _, seen = route_worked(TopK(2), num_tokens=torch.tensor(2))
    assert (seen["rows"], seen["distinct_before"], seen["distinct_after"]) == (2, 4, 3)


def test_infinite_weights_are_not_renormalized() -> None:
    """The sum of a row with an infinite weight is no number to divide by."""
    weights = torch.tensor([[0.5, math.inf], [0.5, 0.25]])
    result, _ = route(TopK(1), 4, torch.tensor([[0, 1], [2, 3]]), weights)
    assert result.ids.tolist() == [[1, 1], [2, 2]]
    assert result.weights.tolist() == [[0, math.inf], [0.75, 0]]


def test_keeping_all_slots_changes_nothing() -> None:
    """S = K is bitwise identity."""
    ids, weights = top_slots()
    result, _ = route_worked(TopK(3))
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)
