"""What the rivals do with weights, scores, budgets and shapes that no router should give."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sere.errors import InputError
from sere.policies import Lynx, Oea, Off, RandomReroute, TopK, XShare
from sere.policies.rows import Rival
from sere.reroute import COUNTERS, Routing

NAN, INF = math.nan, math.inf
RIVALS = [Off(), TopK(1), RandomReroute(1), RandomReroute(2, min_active=3), Oea(1), XShare(3), Lynx(0.5)]
rivals = pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
refilling = pytest.mark.parametrize("rival", [Oea(1), XShare(2), Lynx(0.6)], ids=lambda rival: rival.name)
ODD = [NAN, INF, -INF, 0.0, -0.0, -0.5, 1e-45, 3.4e38, -3.4e38, 300.0]


def route(rival: Rival, E: int, *arguments: Any, **options: Any) -> Routing:
    """Route layer 0, which has E experts."""
    rival.bind({0: E})
    return rival.route(0, *arguments, **options)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Ids that may repeat, odd weights and scores, budgets of any size; K may exceed E."""
    E, K, T = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(0, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    ids = torch.randint(-1, E + 1, (T, K), generator=generator)
    weights, scores = torch.rand(T, K, generator=generator), torch.randn(T, E, generator=generator)
    for values in (weights, scores):
        for _ in range(draw(st.integers(0, 4)) if T else 0):
            t, at = draw(st.integers(0, T - 1)), draw(st.integers(0, values.shape[1] - 1))
            values[t, at] = draw(st.sampled_from(ODD))
    sizes = st.sampled_from([-(2**63), -1, 0, 1, 2, K, 2**31, 2**63 - 1])
    budget = torch.tensor([draw(sizes) for _ in range(T)], dtype=torch.int64)
    return ids, weights, scores, budget, E


@rivals
@given(step=steps())
@example(
    step=(torch.tensor([[0, 0, 0, 1]]), torch.ones(1, 4), torch.tensor([[0.0, 1.0]]), torch.tensor([1]), 2)
)
@settings(max_examples=60)
def test_anything_is_routed(rival: Rival, step: tuple[Tensor, Tensor, Tensor, Tensor, int]) -> None:
    """No error; what does not count keeps its bits; what was finite stays a number; ids are experts'."""
    ids, weights, scores, budget, E = step
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64)
    result = route(rival, E, ids, weights, scores=scores, row_budgets=budget, counters=counters)
    assert (result.ids.shape, result.weights.dtype) == (ids.shape, weights.dtype)
    real = budget >= 0
    valid = (ids >= 0) & (ids < E) & (weights.abs() > 0) & real[:, None]
    kept = real[:, None] & (~valid | (budget >= ids.shape[1])[:, None])
    assert torch.equal(result.ids[kept], ids[kept])
    assert torch.equal(result.weights.view(torch.int32)[kept], weights.view(torch.int32)[kept])
    assert bool(((result.ids >= 0) & (result.ids < E))[valid].all())
    assert not bool(result.weights[valid].isnan().any())
    sums = torch.where(valid, weights.double(), 0).sum(dim=1)
    finite = real & torch.isfinite(sums) & (weights.abs() < 1e30).all(dim=1)
    assert bool(torch.isfinite(result.weights[finite]).all())
    assert counters[COUNTERS.index("slots")] == valid.sum()


@rivals
def test_nan_in_one_row_changes_no_other(rival: Rival) -> None:
    """A row of NaN is a row without slots: the others come out as if it were not there."""
    ids, scores = (
        torch.tensor([[0, 1], [2, 3], [4, 5]]),
        torch.randn(3, 6, generator=torch.Generator().manual_seed(0)),
    )
    with_nan = torch.tensor([[0.5, 0.25], [NAN, NAN], [0.6, 0.3]])
    without = torch.tensor([[0.5, 0.25], [0.0, 0.0], [0.6, 0.3]])
    results = []
    for weights in (with_nan, without):
        if isinstance(rival, RandomReroute):
            rival._steps.clear()
        results.append(route(rival, 6, ids, weights, scores=scores))
    assert torch.equal(results[0].ids, results[1].ids)
    assert torch.equal(results[0].weights[[0, 2]], results[1].weights[[0, 2]])
    assert bool(results[0].weights[1].isnan().all())


def test_infinite_weights_are_not_renormalized() -> None:
    """The sum of a row with an infinite weight is no number to divide by."""
    result = route(TopK(1), 4, torch.tensor([[0, 1], [2, 3]]), torch.tensor([[0.5, INF], [0.5, 0.25]]))
    assert result.ids.tolist() == [[1, 1], [2, 2]]
    assert result.weights.tolist() == [[0, INF], [0.75, 0]]


@refilling
@pytest.mark.parametrize("odd", [NAN, -INF])
def test_an_expert_without_a_score_is_chosen_last(rival: Rival, odd: float) -> None:
    """NaN and -∞ are what a router gives experts that it masks out."""
    ids = torch.tensor([[0, 1], [2, 3], [2, 4], [0, 2]])
    weights = torch.tensor([[0.6, 0.4]] * 4)
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]]).repeat(4, 1)
    plain = route(rival, 5, ids, weights, scores=scores)
    masked = scores.clone()
    masked[0, 2] = odd
    result = route(rival, 5, ids, weights, scores=masked)
    used = result.ids[0][result.weights[0] != 0]
    assert 2 not in used
    assert torch.equal(result.ids[1:], plain.ids[1:])


def test_a_row_whose_gates_say_nothing_weighs_what_is_left_alike() -> None:
    """Both its experts are dropped, and its scores know no other: it keeps its sum."""
    ids, weights = torch.tensor([[0, 1], [0, 1], [2, 3]]), torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.5, 0.25]])
    scores = torch.zeros(3, 4)
    scores[2] = torch.tensor([-INF, -INF, 1.0, 0.5])
    result = route(Lynx(0.5), 4, ids, weights, scores=scores)
    assert result.ids[2].tolist() == [0, 1]
    assert result.weights[2].tolist() == [0.375, 0.375]


@rivals
def test_a_row_may_need_more_experts_than_there_are(rival: Rival) -> None:
    """A row that came with one id in every slot finds no others to fill them with."""
    ids = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
    result = route(rival, 2, ids, torch.ones(2, 4), scores=torch.tensor([[0.0, 1.0]] * 2))
    assert set(result.ids.flatten().tolist()) <= {0, 1}
    torch.testing.assert_close(result.weights.sum(dim=1), torch.tensor([4.0, 4.0]))


@rivals
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"topk_ids": torch.zeros(2, 2, dtype=torch.int16)},
            "topk_ids: expected int32 or int64, got torch.int16",
        ),
        ({"topk_weights": torch.ones(2, 3)}, "one shape"),
        (
            {"topk_ids": torch.zeros(2, 0, dtype=torch.int64), "topk_weights": torch.ones(2, 0)},
            "one slot per row",
        ),
        ({"row_budgets": torch.tensor([1, 1, 1])}, "row_budgets: expected 2 integers"),
        ({"row_budgets": [1, 0.5]}, "row_budgets: expected one integer per row"),
        ({"num_tokens": 3}, "num_tokens: expected 0 to 2"),
        ({"counters": torch.zeros(3)}, "counters: expected int64"),
    ],
    ids=["ids", "shapes", "no slots", "budgets", "budget", "tokens", "counters"],
)
def test_what_sere_refuses_a_rival_refuses(rival: Rival, change: dict[str, Any], text: str) -> None:
    """The same arguments, the same words."""
    arguments: dict[str, Any] = {
        "topk_ids": torch.tensor([[0, 1], [1, 0]]),
        "topk_weights": torch.ones(2, 2),
        "scores": torch.zeros(2, 2),
    }
    with pytest.raises(InputError, match=text):
        route(rival, 2, **arguments | change)


@rivals
def test_budgets_may_be_a_list_of_numbers_of_any_size(rival: Rival) -> None:
    """As for SERE: K and more protect, all below 0 are padding."""
    ids, weights = torch.tensor([[0, 1], [2, 3], [1, 3]]), torch.tensor([[0.6, 0.4]] * 3)
    scores = torch.zeros(3, 4)
    results = []
    for budget in ([2**70, -(2**70), 1], [2, -1, 1]):
        if isinstance(rival, RandomReroute):
            rival._steps.clear()
        results.append(route(rival, 4, ids, weights, scores=scores, row_budgets=budget))
    assert torch.equal(results[0].ids, results[1].ids)
    assert torch.equal(results[0].weights, results[1].weights)
    assert torch.equal(results[0].ids[0], ids[0])
