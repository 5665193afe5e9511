"""Compiled code of an engine on a CPU routes as an eager engine does, through one operation per layer."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sere.integrations.vllm.tiers import PROTECTED
from sere.integrations.vllm.worker import route_operator
from sere.integrations.vllm.worker.layer import RoutedLayer
from sere.reroute.constants import LAYER_BUDGET
from tests.support.vllm.standins import prepared

T, K, E = 5, 4, 16


@pytest.fixture
def layer(any_table: Any, monkeypatch: pytest.MonkeyPatch) -> RoutedLayer:
    """A layer of an engine whose step is under way."""
    found = prepared(any_table, {}, torch.nn.Module).layers[0]
    known = SimpleNamespace(no_compile_layers={found.name: found.runner})
    monkeypatch.setattr(route_operator, "_forward_context", lambda: lambda: known)
    return found


@pytest.fixture
def graphs() -> Iterator[list[torch.fx.GraphModule]]:
    """What is compiled, each graph once."""
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


def compiled(layer: RoutedLayer, graphs: list[torch.fx.GraphModule]) -> Any:
    def keep(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    def step(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        ids, weights = layer.route(ids * 1, weights * 1, torch.zeros(len(ids), E))
        return ids, weights

    return torch.compile(step, backend=keep, fullgraph=True, dynamic=True)


def operations(graph: torch.fx.GraphModule) -> list[torch.fx.Node]:
    """Our operations in a graph and in what it does under a condition."""
    modules = [module for module in graph.modules() if isinstance(module, torch.fx.GraphModule)]
    return [node for module in modules for node in module.graph.nodes if str(node.target).startswith("sere.")]


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights, ids = torch.rand(T, E, generator=generator).topk(K)
    return ids.int(), weights


def announce(layer: RoutedLayer, budgets: list[int]) -> None:
    assert layer.budgets is not None
    layer.budgets.announce(np.array(budgets, dtype=np.int32))


def test_the_graph_holds_one_operation_that_names_the_layer(
    layer: RoutedLayer, graphs: list[torch.fx.GraphModule]
) -> None:
    """No tensor of the layer is an argument, and the next step's settings need no other graph."""
    run = compiled(layer, graphs)
    for seed, budgets in enumerate(([LAYER_BUDGET] * T, [K] * T, [LAYER_BUDGET, K, 1, 2, LAYER_BUDGET])):
        ids, weights = batch(seed)
        announce(layer, budgets)
        expected = layer.route(ids, weights, None)
        assert torch.equal(expected.ids, ids) == (budgets == [K] * T)
        for found, wanted in zip(run(ids, weights), expected, strict=True):
            assert torch.equal(found, wanted)
    (graph,) = graphs
    (call,) = operations(graph)
    assert str(call.target) == "sere.route_layer"
    assert call.args[2] == layer.name == "model.layers.0.experts"
    assert all(isinstance(value, torch.fx.Node) for value in call.args[:2])


def test_a_step_that_nothing_changes_calls_no_operation(
    layer: RoutedLayer, graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host knows; compiled code reads it in each step, and the operation's Python does not run."""
    calls: list[str] = []

    def named_runner(name: str) -> Any:
        calls.append(name)
        return layer.runner

    monkeypatch.setattr(route_operator, "named_runner", named_runner)
    run = compiled(layer, graphs)
    for seed, budget in enumerate((LAYER_BUDGET, PROTECTED, LAYER_BUDGET, PROTECTED)):
        calls.clear()
        ids, weights = batch(seed)
        announce(layer, [budget] * T)
        found = run(ids, weights)
        assert calls == [layer.name] * (budget != PROTECTED)
        for one, wanted in zip(found, layer.route(ids, weights, None), strict=True):
            assert torch.equal(one, wanted)
    assert len(graphs) == 1


@pytest.mark.parametrize("budget", [LAYER_BUDGET, PROTECTED], ids=["re-routed", "left alone"])
def test_the_operation_is_registered_properly(layer: RoutedLayer, budget: int) -> None:
    """Torch's own checks pass: what is returned is never an argument, also where nothing changes."""
    announce(layer, [budget] * T)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = (*batch(2), layer.name)
    torch.library.opcheck(torch.ops.sere.route_layer.default, arguments, test_utils=tests)


def test_a_rule_that_needs_scores_is_traced(layer: RoutedLayer) -> None:
    """The operation hands over no scores; so a rule that needs them is not run through it."""
    layer.needs_scores = True
    seen: list[Any] = []
    route: Any = layer.router

    def router(given: Any) -> Any:
        seen.append(given.router_scores.shape)
        return route(given)

    layer.router = router  # type: ignore[assignment]
    announce(layer, [LAYER_BUDGET] * T)
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []
    compiled(layer, graphs)(*batch(3))
    assert seen
    assert graphs
    assert not any("route_layer" in str(node.target) for graph in graphs for node in operations(graph))
