"""What every rule does with weights, scores, budgets and shapes that no router should give."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sere.reroute.constants import LAYER_BUDGET
from tests.support.policies import EXAMPLES, named_rule, route

ODD = [math.nan, math.inf, -math.inf, 0.0, -0.0, -0.5, 1e-45, 3.4e38, -3.4e38, 300.0]
RULES = [
    *EXAMPLES,
    "random:select_top_k=2,active_experts=3",
    "drop:active_experts=0,renormalize=true",
    "xshare:budget=3",
    "budget:budget=2",
    "budget:budget=2,mode=truncate",
    "topp:p=0.5,renormalize=true",
    "pool:size=2",
    "prune:size=2",
]


@st.composite
def odd_steps(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Ids that may repeat, odd weights and scores, budgets of any size; K may exceed E."""
    E, K, T = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(0, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    ids = torch.randint(-1, E + 1, (T, K), generator=generator)
    weights, scores = torch.rand(T, K, generator=generator), torch.randn(T, E, generator=generator)
    for values in (weights, scores):
        for _ in range(draw(st.integers(0, 4)) if T else 0):
            t, at = draw(st.integers(0, T - 1)), draw(st.integers(0, values.shape[1] - 1))
            values[t, at] = draw(st.sampled_from(ODD))
    sizes = st.sampled_from([-(2**63), -2, -1, 0, 1, 2, K, 2**31, 2**63 - 1])
    budgets = torch.tensor([draw(sizes) for _ in range(T)], dtype=torch.int64)
    return ids, weights, scores, budgets, E


@pytest.mark.parametrize("rule", RULES)
@given(step=odd_steps())
@example(
    step=(torch.tensor([[0, 0, 0, 1]]), torch.ones(1, 4), torch.tensor([[0.0, 1.0]]), torch.tensor([1]), 2)
)
@settings(max_examples=60)
def test_anything_is_routed(rule: str, step: tuple[Tensor, Tensor, Tensor, Tensor, int]) -> None:
    """No error; what does not count keeps its bits; what was finite stays a number; ids are experts'."""
    ids, weights, scores, budgets, E = step
    result, seen = route(named_rule(rule, E), E, ids, weights, router_scores=scores, row_budgets=budgets)
    assert (result.ids.shape, result.weights.dtype) == (ids.shape, weights.dtype)
    real = (budgets >= 0) | (budgets == LAYER_BUDGET)
    valid = (ids >= 0) & (ids < E) & (weights.abs() > 0) & real[:, None]
    kept = real[:, None] & (~valid | (budgets >= ids.shape[1])[:, None])
    assert torch.equal(result.ids[kept], ids[kept])
    assert torch.equal(result.weights.view(torch.int32)[kept], weights.view(torch.int32)[kept])
    assert bool(((result.ids >= 0) & (result.ids < E))[valid].all())
    assert not bool(result.weights[valid].isnan().any())
    sums = torch.where(valid, weights.double(), 0).sum(dim=1)
    finite = real & torch.isfinite(sums) & (weights.abs() < 1e30).all(dim=1)
    assert bool(torch.isfinite(result.weights[finite]).all())
    assert seen["slots"] == valid.sum()
