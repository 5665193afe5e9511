"""A budget of experts that all rows elect, against plain loops and by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sere.policies import Budget
from tests.support.plain_rules import PlainStep, assert_same, dropped, plain_refill, plain_steps
from tests.support.policies import dense, route, route_worked


def plain_election(step: PlainStep, budget: int) -> set[int]:
    """The experts that stay, in plain loops: those of the largest summed gate, and protected ones."""
    gates, rows = step.gates(), step.open_rows()
    chosen = {step.id(slot) for t in rows for slot in step.valid(t)}
    sums = {expert: sum(round(float(gates[t, expert]) * 2**30) for t in rows) for expert in chosen}
    elected = sorted(chosen, key=lambda expert: (-sums[expert], expert))[:budget]
    return step.protected_experts() | set(elected)


@settings(max_examples=60)
@given(step=plain_steps(), budget=st.integers(1, 5))
def test_rows_choose_again_inside_the_elected_experts(step: PlainStep, budget: int) -> None:
    """``mode="substitute"``: ids and weights are those of the plain loops."""
    result, _ = route(Budget(budget), step.E, step.ids, step.weights, **step.given)
    assert_same(result, plain_refill(step, plain_election(step, budget)))


@settings(max_examples=60)
@given(step=plain_steps(), budget=st.integers(1, 5))
def test_slots_outside_the_elected_experts_are_truncated(step: PlainStep, budget: int) -> None:
    """``mode="truncate"``: ids and weights are those of the plain loops."""
    result, seen = route(Budget(budget, "truncate"), step.E, step.ids, step.weights, **step.given)
    elected = plain_election(step, budget)
    assert_same(result, dropped(step, lambda slot: step.id(slot) in elected, renormalize=False))
    assert seen["distinct_after"] <= budget + len(step.protected_experts())


def test_a_rows_best_expert_has_no_guarantee() -> None:
    """Summed gates: 0: 1.05, 1: 0.57, 3: 0.50. At a budget of 2, row 1 loses its best, expert 3."""
    result, _ = route_worked(Budget(2))
    assert [sorted(set(row)) for row in result.ids.tolist()] == [[0, 1]] * 3
    assert dense(result, 1) == pytest.approx([0.2 * 0.8 / 0.45, 0.25 * 0.8 / 0.45, 0, 0, 0, 0])
    result, _ = route_worked(Budget(2, "truncate"))
    assert dense(result, 1) == pytest.approx([0.2, 0.25, 0, 0, 0, 0])
    assert result.ids[1].tolist() == [1, 1, 0]


def test_rows_with_nothing_inside_run_no_expert_where_slots_are_truncated() -> None:
    """The row's slots get the lowest expert that runs, with weight 0."""
    ids, weights = torch.tensor([[3], [3], [1]]), torch.ones(3, 1)
    scores = torch.tensor([[0.0, 0.0, 0.0, 9.0]] * 2 + [[0.0, 9.0, 0.0, 0.0]])
    result, seen = route(Budget(1, "truncate"), 4, ids, weights, router_scores=scores)
    assert result.ids.tolist() == [[3], [3], [3]]
    assert result.weights.tolist() == [[1], [1], [0]]
    assert seen["distinct_after"] == 1


def test_gates_are_summed_without_rounding_them_together() -> None:
    """Two experts whose sums differ by less than their last bit in 16 bits are told apart in any order."""
    scores = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25, 0.5 + 2**-20, 0.25, 0.0]]).log()
    ids, weights = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.5, 0.25], [0.5, 0.25]])
    for order in ([0, 1], [1, 0]):
        result, _ = route(Budget(1), 4, ids[order], weights[order], router_scores=scores[order])
        assert set(result.ids.flatten().tolist()) == {1}
