"""The rules that let rows choose again, against examples worked by hand and their definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from sere.policies import Budget, Lynx, Oea, Policy, XShare
from tests.support.policies import dense, route, route_worked, router_steps, top_slots

refilling = pytest.mark.parametrize(
    "policy", [Oea(1), Oea(2), XShare(2), XShare(4), Lynx(0.3), Lynx(0.6), Budget(2), Budget(4)], ids=repr
)


def test_oea_refills_from_what_is_active() -> None:
    """S=1 makes {0, 3} active: each row keeps its top and takes the other, renormalized to its old sum."""
    result, _ = route_worked(Oea(1))
    assert result.ids.tolist() == [[0, 3, 0], [3, 3, 0], [0, 3, 0]]
    assert dense(result, 0) == pytest.approx([0.40 * 0.85 / 0.45, 0, 0, 0.05 * 0.85 / 0.45, 0, 0])
    assert dense(result, 1) == pytest.approx([0.20 * 0.80 / 0.55, 0, 0, 0.35 * 0.80 / 0.55, 0, 0])


def test_xshare_fills_its_budget_by_summed_gate() -> None:
    """Tops are {0, 3}; of the rest expert 1 has the largest summed gate (0.57), then 4 (0.39): budget 3."""
    result, _ = route_worked(XShare(3))
    assert [sorted(row) for row in result.ids.tolist()] == [[0, 1, 3], [0, 1, 3], [0, 1, 3]]
    assert dense(result, 2) == pytest.approx(
        [0.45 * 0.85 / 0.57, 0.02 * 0.85 / 0.57, 0, 0.1 * 0.85 / 0.57, 0, 0]
    )


def test_xshare_keeps_every_top_expert_beyond_its_budget() -> None:
    """Budget 1 with two different tops: both stay."""
    result, _ = route_worked(XShare(1))
    assert set(result.ids.flatten().tolist()) == {0, 3}


def test_lynx_drops_the_least_used() -> None:
    """Uses are 0: 3, 1: 2, 2..5: 1 each. Half go; of the equals the lowest id, 2, stays."""
    result, _ = route_worked(Lynx(0.5))
    assert set(result.ids.flatten().tolist()) == {0, 1, 2}
    assert dense(result, 1) == pytest.approx([0.2 * 0.8 / 0.5, 0.25 * 0.8 / 0.5, 0.05 * 0.8 / 0.5, 0, 0, 0])


@pytest.mark.parametrize(
    ("policy", "experts"),
    [(XShare(3), {0, 1, 3, 4}), (Budget(3), {0, 1, 3, 4}), (Lynx(0.5), {0, 1, 2, 3})],
    ids=lambda value: repr(value) if isinstance(value, Policy) else "",
)
def test_protected_rows_take_nothing_from_the_others(policy: Policy, experts: set[int]) -> None:
    """Row 1 keeps {0, 1, 3}; beside them are three of the others: {0, 1, 4} by gates, {0, 1, 2} by uses."""
    result, _ = route_worked(policy, row_budgets=torch.tensor([-2, 3, -2]))
    assert set(result.ids.flatten().tolist()) == experts


@pytest.mark.parametrize("policy", [Oea(3), XShare(6), Lynx(0.0), Budget(6)], ids=repr)
def test_settings_that_drop_nothing_are_bitwise_identity(policy: Policy) -> None:
    """S = K, a budget of E, or no share to drop."""
    ids, weights = top_slots()
    result, _ = route_worked(policy)
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)


@refilling
@settings(max_examples=15)
@given(step=router_steps())
def test_rows_choose_their_best_inside_what_is_active(policy: Policy, step: Any) -> None:
    """Each row ends with the K best, by its own logits, of the experts that run, each once."""
    ids, weights, logits, E = step
    K = ids.shape[1]
    # In 16 bits a small weight may become 0, which is no slot.
    result, _ = route(policy, E, ids, weights.float(), router_scores=logits)
    used = [
        row[row_weights != 0].tolist() for row, row_weights in zip(result.ids, result.weights, strict=True)
    ]
    active = sorted({expert for row in used for expert in row})
    for row, experts in enumerate(used):
        best = sorted(active, key=lambda expert, row=row: -float(logits[row, expert]))[:K]
        assert sorted(experts) == sorted(best)


@pytest.mark.parametrize("probabilities", [False, True], ids=["logits", "probabilities"])
@pytest.mark.parametrize("gate", [torch.sigmoid, lambda x: x.softmax(1)], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("scale", [None, 2.5], ids=["normalized", "scaled"])
def test_refilled_weights_are_those_of_the_router(
    probabilities: bool, gate: Any, scale: float | None
) -> None:
    """Softmax or sigmoid, logits or probabilities, normalized or scaled: gates are the router's."""
    logits = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scores = gate(logits)
    weights, ids = scores.topk(3, dim=1)
    factor = torch.full((4, 1), scale) if scale else 1 / weights.sum(1, keepdim=True)
    shown = scores if probabilities else logits
    result, _ = route(Oea(1), 8, ids, (weights * factor).float(), router_scores=shown)
    for row in range(4):
        used = result.ids[row][result.weights[row] != 0]
        expected = scores[row, used] / scores[row, used].sum() * (weights * factor)[row].sum()
        got = result.weights[row][result.weights[row] != 0]
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-7)


@refilling
@pytest.mark.parametrize("odd", [math.nan, -math.inf], ids=["NaN", "-inf"])
def test_an_expert_without_a_score_is_chosen_last(policy: Policy, odd: float) -> None:
    """NaN and -∞ are what a router gives experts that it masks out."""
    ids = torch.tensor([[0, 1], [2, 3], [2, 4], [0, 2]])
    weights = torch.tensor([[0.6, 0.4]] * 4)
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]]).repeat(4, 1)
    plain, _ = route(policy, 5, ids, weights, router_scores=scores)
    masked: Tensor = scores.clone()
    masked[0, 2] = odd
    result, _ = route(policy, 5, ids, weights, router_scores=masked)
    assert 2 not in result.ids[0][result.weights[0] != 0]
    assert torch.equal(result.ids[1:], plain.ids[1:])


def test_a_row_whose_gates_say_nothing_weighs_what_is_left_alike() -> None:
    """Both its experts are dropped, and its scores know no other: it keeps its sum."""
    ids, weights = torch.tensor([[0, 1], [0, 1], [2, 3]]), torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.5, 0.25]])
    scores = torch.zeros(3, 4)
    scores[2] = torch.tensor([-math.inf, -math.inf, 1.0, 0.5])
    result, _ = route(Lynx(0.5), 4, ids, weights, router_scores=scores)
    assert result.ids[2].tolist() == [0, 1]
    assert result.weights[2].tolist() == [0.375, 0.375]
