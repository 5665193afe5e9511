"""What holds for every rule of the registry, with its own example's options and with others."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sere.errors import InputError
from sere.policies import POLICIES
from sere.policies.spec import parse_spec
from sere.reroute import TokenBatch
from tests.support.policies import EXAMPLES, counted, example, named_rule, route, router, router_steps

OTHERS = [
    "sere:select_top_k=1,threshold=0.5,active_experts=3",
    "random:select_top_k=2,active_experts=3",
    "drop:select_top_k=1,active_experts=0",
    "drop:select_top_k=1,active_experts=3,renormalize=true",
    "topk:select_top_k=1",
    "topp:p=0.5,renormalize=true",
    "oea:select_top_k=1",
    "xshare:budget=1",
    "xshare:budget=4",
    "budget:budget=1",
    "budget:budget=3",
    "budget:budget=3,mode=truncate",
    "lynx:drop_share=0.3",
    "lynx:drop_share=0.7",
    "pool:size=2",
    "prune:size=1",
    "prune:size=3",
]
# They drop slots without making up for them.
LIGHTER = ("drop:select_top_k=2", "drop:select_top_k=1,active_experts=0", "topp:p=0.8")
LIGHTER += ("budget:budget=3,mode=truncate",)
rules = pytest.mark.parametrize("rule", EXAMPLES + OTHERS)
changing = pytest.mark.parametrize(
    "rule", [rule for rule in EXAMPLES + OTHERS if parse_spec(rule).policy_class.changes_routing]
)


@rules
@settings(max_examples=8)
@given(step=router_steps(), data=st.data())
def test_dtypes_inputs_sums_and_protected_rows_stay(rule: str, step: Any, data: st.DataObject) -> None:
    """Shapes, dtypes and each row's sum stay, or it becomes smaller; protected rows are kept bit for bit."""
    ids, weights, logits, E = step
    T, K = ids.shape
    budgets = torch.tensor(data.draw(st.lists(st.sampled_from([-1, K, 1]), min_size=T, max_size=T)))
    before = ids.clone(), weights.clone()
    result, _ = route(named_rule(rule, E), E, ids, weights, router_scores=logits, row_budgets=budgets)
    assert torch.equal(ids, before[0])
    assert torch.equal(weights, before[1])
    assert (result.ids.shape, result.weights.shape) == (ids.shape, weights.shape)
    assert (result.ids.dtype, result.weights.dtype) == (ids.dtype, weights.dtype)
    protected, real = budgets >= K, budgets >= 0
    assert torch.equal(result.ids[protected], ids[protected])
    assert torch.equal(result.weights[protected], weights[protected])
    tolerance = 1e-6 if weights.dtype == torch.float32 else 2e-2
    after, old = result.weights[real].double().sum(1), weights[real].double().sum(1)
    torch.testing.assert_close(
        after if rule not in LIGHTER else after.maximum(old), old, rtol=tolerance, atol=tolerance
    )


@changing
@settings(max_examples=8)
@given(step=router_steps(), data=st.data())
def test_padding_rows_do_not_vote(rule: str, step: Any, data: st.DataObject) -> None:
    """What padding rows hold changes nothing; their weights become 0 and their ids an active expert.

    Where all rows are padding, they keep what they hold.
    """
    ids, weights, logits, E = step
    T = ids.shape[0]
    padding = torch.tensor(data.draw(st.lists(st.booleans(), min_size=T, max_size=T)))
    budgets = torch.where(padding, -1, 1)
    noise = ids.clone(), weights.clone(), logits.clone()
    for values, value in zip(noise, (0, 0.5, 3.0), strict=True):
        values[padding] = value
    policy = named_rule(rule, E)
    (result, _), (other, _) = (
        route(policy, E, i, w, router_scores=scores, row_budgets=budgets)
        for i, w, scores in ((ids, weights, logits), noise)
    )
    if bool(padding.all()):
        assert torch.equal(result.ids, ids)
        assert torch.equal(other.ids, noise[0])
        assert torch.equal(other.weights, noise[1])
        return
    assert torch.equal(result.ids, other.ids)
    assert torch.equal(result.weights, other.weights)
    assert not result.weights[padding].any()
    active = set(result.ids[~padding][result.weights[~padding] != 0].tolist())
    assert set(result.ids[padding].flatten().tolist()) <= active


@rules
def test_nothing_real_changes_nothing(rule: str) -> None:
    """N = 0: bitwise identity, and the counters stay at 0."""
    ids, weights = torch.tensor([[0, 1, 2], [3, 1, 0]]), torch.rand(2, 3)
    result, seen = route(
        named_rule(rule, 6), 6, ids, weights, router_scores=torch.rand(2, 6), num_tokens=torch.tensor(0)
    )
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)
    assert not any(seen.values())


@rules
@pytest.mark.parametrize(
    "weight", [0.0, math.nan, 0.5], ids=["weights of 0", "weights of NaN", "ids outside"]
)
def test_without_a_slot_that_counts_nothing_changes(rule: str, weight: float) -> None:
    """Not a bit of any row; at most the step and its rows are counted."""
    ids = torch.tensor([[1, 1, 2], [3, 1, 0]]) if weight != 0.5 else torch.tensor([[-1, 6, 7], [-2, 9, -1]])
    weights = torch.full((2, 3), weight)
    result, seen = route(named_rule(rule, 6), 6, ids, weights, router_scores=torch.zeros(2, 6))
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights.view(torch.int32), weights.view(torch.int32))
    assert not [name for name, count in seen.items() if count and name not in ("steps", "rows")]


@rules
def test_zero_experts_and_sentinels_pass_through(rule: str) -> None:
    """Slots with an id beyond E, a negative one or no weight keep what they have, and count for nothing."""
    ids = torch.tensor([[0, 7, 1], [-1, 2, 1], [3, 4, 5]])
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.3, 0.2], [0.6, 0.4, 0.0]])
    result, seen = route(named_rule(rule, 6), 6, ids, weights, router_scores=torch.zeros(3, 6))
    for row, slot in ((0, 1), (1, 0), (2, 2)):
        assert result.ids[row, slot] == ids[row, slot]
        assert result.weights[row, slot] == weights[row, slot]
    assert (seen["steps"], seen["rows"], seen["distinct_before"], seen["slots"]) == (1, 3, 5, 6)


@rules
def test_counters_count_what_runs(rule: str) -> None:
    """Distinct experts after, and the slots that changed, are those of the result; two steps add up."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(5, 8, generator=generator)
    weights, ids = logits.softmax(1).topk(3, dim=1)
    bound = router(named_rule(rule, 8), 8, 3)
    after = rerouted = 0
    for _ in range(2):
        result = bound(TokenBatch(ids, weights, router_scores=logits))
        after += len(result.ids[result.weights != 0].unique())
        rerouted += int((result.ids != ids).sum())
    seen = counted(bound)
    assert (seen["steps"], seen["rows"], seen["slots"]) == (2, 10, 30)
    assert seen["distinct_before"] == 2 * len(ids.unique())
    assert (seen["distinct_after"], seen["slots_rerouted"]) == (after, rerouted)


@rules
def test_equal_rules_decide_equally_step_by_step(rule: str) -> None:
    """What a router remembers is its own: routers of one policy, or of equal ones, go the same way."""
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    weights, ids = logits.softmax(1).topk(3, dim=1)
    policy = named_rule(rule, 8)
    routers = [router(policy, 8, 3), router(policy, 8, 3), router(named_rule(rule, 8), 8, 3)]
    for _ in range(3):
        results = [bound(TokenBatch(ids, weights, router_scores=logits)) for bound in routers]
        assert all(torch.equal(results[0].ids, other.ids) for other in results[1:])
        assert all(torch.equal(results[0].weights, other.weights) for other in results[1:])


@rules
def test_a_router_compiles_as_one_graph(rule: str) -> None:
    """``fullgraph=True`` gives the eager decisions and counts, in the second step too."""
    torch._dynamo.reset()
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    weights, ids = logits.softmax(1).topk(3, dim=1)
    budgets = torch.tensor([1, -1, 3, 1], dtype=torch.int32)
    eager, traced = router(named_rule(rule, 8), 8, 3), router(named_rule(rule, 8), 8, 3)

    @torch.compile(fullgraph=True, backend="eager")
    def step(ids: Tensor, weights: Tensor, budgets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(traced(TokenBatch(ids, weights, budgets, None, logits)))

    for _ in range(2):
        expected = eager(TokenBatch(ids, weights, budgets, None, logits))
        result = step(ids, weights, budgets, logits)
        assert torch.equal(result[0], expected.ids)
        assert torch.equal(result[1], expected.weights)
    assert counted(traced) == counted(eager)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_immutable_and_a_router_names_its_tensors(name: str) -> None:
    """Settings cannot be assigned to; a step writes to no tensor that ``tensors`` leaves out."""
    policy = example(name, 16)
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.select_top_k = 3  # type: ignore[attr-defined]
    bound = router(policy, 16, 3)
    tensors = bound.tensors()
    assert tensors["counters"] is bound.counters
    held = [value for value in vars(bound).values() if isinstance(value, Tensor)]
    assert all(any(one is named for named in tensors.values()) for one in held)


@pytest.mark.parametrize("name", [name for name, kind in POLICIES.items() if kind.needs_scores])
def test_missing_scores_are_named(name: str) -> None:
    """A rule that chooses again needs the router's scores of all experts."""
    ids, weights = torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.4]])
    with pytest.raises(InputError, match=rf"'{name}': expected router scores of shape \[1, 6\], got None"):
        route(example(name, 6), 6, ids, weights)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ids": (
        {"topk_ids": torch.zeros(2, 2, dtype=torch.int16)},
        "topk_ids: expected int32 or int64, got torch.int16",
    ),
    "shapes": ({"topk_weights": torch.ones(2, 3)}, "the same shape"),
    "no slots": (
        {"topk_ids": torch.zeros(2, 0, dtype=torch.int64), "topk_weights": torch.ones(2, 0)},
        "one slot per row",
    ),
    "budgets": ({"row_budgets": torch.tensor([1, 1, 1])}, "row_budgets: expected 2 integers"),
    "budget": ({"row_budgets": torch.tensor([1, 0.5])}, "row_budgets: expected 2 integers"),
    "tokens": ({"num_tokens": 3}, "num_tokens: expected 0 to 2"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", POLICIES)
def test_every_rule_refuses_the_same_batches(name: str, case: str) -> None:
    """The same arguments, the same words."""
    change, text = REFUSED[case]
    arguments = {
        "topk_ids": torch.tensor([[0, 1], [1, 0]]),
        "topk_weights": torch.ones(2, 2),
        "router_scores": torch.zeros(2, 2),
    }
    with pytest.raises(InputError, match=text):
        router(example(name, 2), 2, 2)(TokenBatch(**arguments | change))


@pytest.mark.parametrize("name", POLICIES)
def test_budgets_may_be_numbers_of_any_size(name: str) -> None:
    """K and more protect, all below 0 are padding."""
    ids, weights = torch.tensor([[0, 1], [2, 3], [1, 3]]), torch.tensor([[0.6, 0.4]] * 3)
    policy, scores = example(name, 4), torch.zeros(3, 4)
    (huge, _), (small, _) = (
        route(policy, 4, ids, weights, router_scores=scores, row_budgets=torch.tensor(budgets))
        for budgets in ([2**63 - 1, -(2**63), 1], [2, -1, 1])
    )
    assert torch.equal(huge.ids, small.ids)
    assert torch.equal(huge.weights, small.weights)
    assert torch.equal(huge.ids[0], ids[0])


@rules
def test_nan_in_one_row_changes_no_other(rule: str) -> None:
    """A row of NaN is a row without slots: the others get what they would get without it."""
    ids = torch.tensor([[0, 1], [2, 3], [4, 5]])
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    with_nan = torch.tensor([[0.5, 0.25], [math.nan, math.nan], [0.6, 0.3]])
    without = torch.tensor([[0.5, 0.25], [0.0, 0.0], [0.6, 0.3]])
    policy = named_rule(rule, 6)
    (result, _), (other, _) = (
        route(policy, 6, ids, weights, router_scores=scores) for weights in (with_nan, without)
    )
    assert torch.equal(result.ids, other.ids)
    assert torch.equal(result.weights[[0, 2]], other.weights[[0, 2]])
    assert bool(result.weights[1].isnan().all())


@rules
def test_a_row_may_need_more_experts_than_there_are(rule: str) -> None:
    """A row that came with one id in every slot finds no others to fill them with."""
    ids = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
    scores = torch.tensor([[0.0, 1.0]] * 2)
    result, _ = route(named_rule(rule, 2), 2, ids, torch.ones(2, 4), router_scores=scores)
    assert set(result.ids.flatten().tolist()) <= {0, 1}
    if rule not in LIGHTER:
        torch.testing.assert_close(result.weights.sum(dim=1), torch.tensor([4.0, 4.0]))
