"""The uses of each expert are counted as plain loops over the slots count them, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.reroute import COUNTERS, PreparedLayer, Routing, TokenBatch, prepare_layer, reroute
from sere.reroute.expert_counts import ExpertCounts, new_counts, route_counted
from sere.similarity.layer import LayerSimilarity
from tests.support.batches import Case, batch, counted, fuzzed, similarity_matrix
from tests.support.expert_counts import add_step, nothing

CPU = torch.device("cpu")


def fresh_counters() -> Tensor:
    return torch.zeros(len(COUNTERS), dtype=torch.int64)


def router_of(case: Case, counters: Tensor) -> Callable[[TokenBatch], Routing]:
    """The operation with a case's settings, as a layer's router."""
    options = {"active_experts": 0, "backend": "torch"} | case.options

    def route(given: TokenBatch) -> Routing:
        return reroute(given.topk_ids, given.topk_weights, case.similarity, counters=counters, **options)

    return route


@pytest.mark.parametrize("seed", range(60))
def test_counts_are_those_of_plain_loops(seed: int) -> None:
    """Whatever ids, weights, padding, budgets and settings: a step adds what loops count, or nothing.

    The sums are the layer's slots, and those that were computed.
    """
    case, counters = fuzzed(seed), fresh_counters()
    E = len(case.similarity)
    given = TokenBatch(
        case.ids, case.weights, case.options.get("row_budgets"), case.options.get("num_tokens")
    )
    counts, expected = new_counts(E, CPU), nothing(E)
    for _ in range(2):
        steps = int(counters[0])
        routing = route_counted(router_of(case, counters), given, counters, counts)
        if int(counters[0]) > steps:
            add_step(expected, given, routing)
    assert counts.tolist() == expected
    sums = counted(counters)
    assert int(counts[0].sum()) == sums["slots"]
    if "scale" not in case.options:
        # A factor may make a weight too small for its dtype.
        assert int(counts[1].sum()) == sums["slots_computed"]


def test_a_step_that_the_layer_does_not_count() -> None:
    """Where no expert is primary nothing is routed, and the layer counts neither the step nor its experts."""
    ids, weights = batch(3, 2, 8, seed=1)
    budgets = torch.zeros(3, dtype=torch.int32)
    case, counters = Case(ids, weights, similarity_matrix(8, 0), {"row_budgets": budgets}), fresh_counters()
    counts = new_counts(8, CPU)
    routing = route_counted(router_of(case, counters), TokenBatch(ids, weights, budgets), counters, counts)
    assert torch.equal(routing.ids, ids)
    assert (int(counters.sum()), int(counts.sum())) == (0, 0)


def prepared(backend: str) -> PreparedLayer:
    config = RerouteConfig(select_top_k=1, active_experts=5, merge="same", backend=backend)
    return prepare_layer(LayerSimilarity(similarity_matrix(16, 0)), config, device=CPU)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_compiles_whole(backend: str) -> None:
    """Compiled as one graph, step after step, the counts are the eager ones, in the tensor that was given."""
    layer, counters, counts = prepared(backend), fresh_counters(), new_counts(16, CPU)

    def step(ids: Tensor, weights: Tensor, budgets: Tensor) -> tuple[Tensor, Tensor]:
        routing = route_counted(
            lambda given: layer.route(given, counters),
            TokenBatch(ids, weights, budgets),
            counters,
            counts,
        )
        return routing.ids * 1, routing.weights * 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    address, expected = counts.data_ptr(), nothing(16)
    for seed, padding in ((1, 0), (2, 3), (3, 6)):
        ids, weights = batch(6, 4, 16, seed=seed)
        budgets = torch.tensor([-2] * (6 - padding) + [-1] * padding, dtype=torch.int32)
        routing = Routing(*compiled(ids, weights, budgets))
        add_step(expected, TokenBatch(ids, weights, budgets), routing)
    assert counts.tolist() == expected
    assert counts.data_ptr() == address
    assert sum(expected[0]) == 4 * (6 + 3)
    assert sum(expected[1]) < sum(expected[0])


def test_nothing_waits_for_the_device() -> None:
    """It runs on fake tensors: no value is read, no shape depends on one."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer = prepared("torch")
    ids, weights = batch(6, 4, 16, seed=1)
    tensors = (ids, weights, torch.ones(6, dtype=torch.int32), torch.tensor(4))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(tensor) for tensor in tensors]
        counters, counts = (mode.from_tensor(one) for one in (fresh_counters(), new_counts(16, CPU)))
        given = TokenBatch(*fakes)
        routing = route_counted(lambda one: layer.route(one, counters), given, counters, counts)
    assert routing.ids.shape == ids.shape


def test_counts_are_read_by_row() -> None:
    """The first row is what was chosen, the second what ran."""
    found = ExpertCounts.read(3, "experts", torch.tensor([[1, 2], [3, 0]]))
    assert found == ExpertCounts(3, "experts", chosen=(1, 2), ran=(3, 0))


def test_counts_of_inference_mode_go_on_outside() -> None:
    """A tensor that was made in inference mode is written outside it, too."""
    layer, counters = prepared("torch"), fresh_counters()
    with torch.inference_mode():
        counts = new_counts(16, CPU)
    given = TokenBatch(*batch(6, 4, 16, seed=1))
    route_counted(lambda one: layer.route(one, counters), given, counters, counts)
    assert int(counts[0].sum()) == 24
