"""Slots that would give too little are given up: worked by hand, on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import ConfigError
from sere.policies.spec import parse_spec
from sere.reroute import COUNTERS, TokenBatch, prepare_layer
from sere.reroute.constants import LAYER_BUDGET, LIMITS, PADDING_BUDGET
from sere.similarity.layer import LayerSimilarity
from tests.support.batches import BACKENDS, Case, counted, device_of, name_of, similarity_matrix

pytestmark = pytest.mark.usefixtures("shim_backend")
backends = pytest.mark.parametrize("backend", BACKENDS)

# At S = 1 and M = 0, P is {0, 1}. The other slots give these shares of their rows' energy: 0.114 and 0.024,
# 0.016 and 0.001, 0.095 and 0.0095.
IDS = [[2, 0, 3], [1, 2, 4], [0, 3, 4]]
WEIGHTS = [[0.25, 0.5, 0.125], [0.75, 0.125, 0.0625], [0.5, 0.25, 0.125]]
SIMILARITY = torch.full((5, 5), 0.1).fill_diagonal_(1.0)
SIMILARITY[2, 1], SIMILARITY[3, 0], SIMILARITY[4, 0] = 0.6, 0.5, 0.2
DOUBLE = torch.full((5, 5), 2.0)


def example(**options: Any) -> Case:
    return Case(torch.tensor(IDS), torch.tensor(WEIGHTS), SIMILARITY, {"scale": DOUBLE} | options)


@backends
def test_a_slot_below_the_least_gain_has_no_weight(backend: str) -> None:
    """It keeps the id of its substitute, which is read anyway; with 0 no slot is given up."""
    routing, counts = example(min_gain=0.05).run(backend)
    assert routing.ids.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert routing.weights.tolist() == [[0.5, 0.5, 0.0], [0.75, 0.0, 0.0], [0.5, 0.5, 0.0]]
    assert counts == {
        "steps": 1, "rows": 3, "distinct_before": 5, "distinct_after": 2, "slots": 9,
        "slots_rerouted": 6, "slots_computed": 5, "critical": 0,
    }  # fmt: skip
    routing, counts = example(min_gain=0.0).run(backend)
    assert routing.weights.tolist() == [[0.5, 0.5, 0.25], [0.75, 0.25, 0.125], [0.5, 0.5, 0.25]]
    assert counts["slots_computed"] == 9


@backends
@pytest.mark.parametrize(
    ("merge", "ids"),
    [("same", [[1, 0, 0], [1, 1, 0], [0, 0, 0]]), ("sentinel", [[1, 0, -1], [1, -1, -1], [0, -1, -1]])],
)
def test_what_is_merged_with_a_slot_that_stays_is_free(
    backend: str, merge: str, ids: list[list[int]]
) -> None:
    """Merged slots are computed once, so none of them is given up; only row 1 has one that stands alone."""
    sentinel = -1 if merge == "sentinel" else None
    routing, counts = example(min_gain=0.05, merge=merge, sentinel=sentinel).run(backend)
    assert routing.ids.tolist() == ids
    assert routing.weights.tolist() == [[0.5, 0.75, 0.0], [1.0, 0.0, 0.0], [1.25, 0.0, 0.0]]
    assert counts["slots_computed"] == 4


@backends
def test_one_of_the_merged_slots_is_enough(backend: str) -> None:
    """Of two slots of row 0 that go to expert 1, the first gives 17 % of the row's energy, the second 4 %."""
    similarity = torch.full((4, 4), 0.1).fill_diagonal_(1.0)
    similarity[2, 1] = similarity[3, 1] = 0.9
    ids, weights = torch.tensor([[0, 2, 3], [1, 0, 2]]), torch.tensor([[0.5, 0.25, 0.125]] * 2)
    case = Case(ids, weights, similarity, {"scale": torch.ones(4, 4), "min_gain": 0.1})
    assert case.run(backend)[0].weights[0].tolist() == [0.5, 0.25, 0.0]
    assert case.run(backend, merge="same")[0].weights[0].tolist() == [0.5, 0.375, 0.0]
    assert case.run(backend, merge="same", min_gain=0.2)[0].weights[0].tolist() == [0.5, 0.0, 0.0]


@backends
@pytest.mark.parametrize(("min_gain", "weight"), [(0.25, 0.5), (0.25 + 2**-30, 0.0)])
def test_the_least_gain_itself_is_enough(backend: str, min_gain: float, weight: float) -> None:
    """Half of one of two equal slots is a quarter of the row; it counts in units of 2⁻³⁰."""
    similarity = torch.full((2, 2), 0.5).fill_diagonal_(1.0)
    options = {"scale": torch.ones(2, 2), "min_gain": min_gain}
    routing, _ = Case(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]), similarity, options).run(backend)
    assert routing.weights.tolist() == [[0.5, weight]]


@backends
def test_only_rows_that_are_rerouted_give_up_slots(backend: str) -> None:
    """A protected row keeps all its weights, and an expert that is critical is no substitute."""
    routing, _ = example(min_gain=1.0, row_budgets=[3, -2, -2]).run(backend)
    assert routing.weights.tolist() == [WEIGHTS[0], [0.75, 0.125, 0.0], [0.5, 0.25, 0.0]]
    routing, counts = example(min_gain=1.0, threshold=0.3).run(backend)
    assert routing.weights.tolist() == [[0.0, 0.5, 0.0], [0.75, 0.0, 0.0625], [0.5, 0.0, 0.125]]
    assert counts["critical"] == 1


def test_a_gain_needs_factors() -> None:
    """Without them a similarity is no share of an expert's output, whatever the metric."""
    text = "min_gain=0.01: needs factors"
    with pytest.raises(ConfigError, match=text):
        Case(torch.tensor(IDS), torch.tensor(WEIGHTS), SIMILARITY, {"min_gain": 0.01}).run("torch")
    layer = LayerSimilarity(similarity_matrix(8, 0))
    with pytest.raises(ConfigError, match=text):
        prepare_layer(layer, RerouteConfig(layers={3: {"min_gain": 0.01}}), index=3, top_k=2)
    prepare_layer(layer, RerouteConfig(layers={3: {"min_gain": 0.01}}), index=2, top_k=2)


def test_the_setting_is_written_like_any_other() -> None:
    """A label reads back as the same setting."""
    spec = parse_spec("sere:min_gain=0.003,active_experts=24")
    assert spec.label == "sere:active_experts=24,min_gain=0.003"
    assert parse_spec(spec.label) == spec


@backends
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_freed_slots_are_skipped_in_large_steps(backend: str, compiled: bool) -> None:
    """From three rows on, padding included, a step is one of ``merge="sentinel"``; below it is as before."""
    torch.compiler.reset()
    config = RerouteConfig(active_experts=0, min_gain=0.05, backend=name_of(backend))  # type: ignore[arg-type]
    device = device_of(backend)
    layer = prepare_layer(LayerSimilarity(SIMILARITY), config, scale=DOUBLE, device=device)
    layer.skip_freed_slots(3, -1)
    layer.read_limits_from(torch.zeros(LIMITS, dtype=torch.int32, device=device))
    route = torch.compile(layer.route, fullgraph=True, backend="eager") if compiled else layer.route
    for rows, real, merge in ((2, 2, "none"), (3, 3, "sentinel"), (3, 2, "sentinel")):
        ids, weights = torch.tensor(IDS)[:rows], torch.tensor(WEIGHTS)[:rows]
        counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)
        budgets = torch.tensor([LAYER_BUDGET] * real + [PADDING_BUDGET] * (rows - real), dtype=torch.int32)
        routing = route(TokenBatch(ids.to(device), weights.to(device), budgets.to(device)), counters)
        case = Case(ids, weights, SIMILARITY, {"scale": DOUBLE, "min_gain": 0.05, "row_budgets": budgets})
        sentinel = -1 if merge == "sentinel" else None
        expected, counts = case.run("reference", merge=merge, sentinel=sentinel)
        assert routing.ids.tolist() == expected.ids.tolist()
        assert routing.weights.tolist() == expected.weights.tolist()
        assert counted(counters) == counts
        assert bool((routing.ids == -1).any()) == (merge == "sentinel")


def test_a_sentinel_is_no_expert() -> None:
    """In large steps, too."""
    layer = prepare_layer(LayerSimilarity(SIMILARITY), RerouteConfig(active_experts=0), top_k=3)
    with pytest.raises(ConfigError, match="sentinel: expected an id outside \\[0, 5\\), such as -1, got 4"):
        layer.skip_freed_slots(3, 4)
