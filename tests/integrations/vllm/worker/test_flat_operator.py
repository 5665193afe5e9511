"""Compiled code hands an expert kernel only the pairs that carry weight, in steps that may be re-routed."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sere.integrations.vllm.tiers import PROTECTED
from sere.integrations.vllm.worker import flat_operator
from sere.integrations.vllm.worker.flat_experts import FlatExperts
from sere.integrations.vllm.worker.row_budgets import RowBudgets
from sere.reroute.constants import LAYER_BUDGET

K, H, E = 4, 8, 6
REST = {
    "global_num_experts": E, "expert_map": None, "a1q_scale": None, "a2_scale": None,
    "workspace13": torch.empty(0), "workspace2": torch.empty(0), "expert_tokens_meta": None,
    "apply_router_weight_on_input": False,
}  # fmt: skip
W1, W2 = torch.rand(E, H), torch.rand(E, H)


class Activation(Enum):
    """What experts apply between their weights; this kernel does not."""

    SILU = "silu"


class Kernel:
    """An expert kernel: each expert multiplies by its two weights."""

    def apply(
        self, output: Tensor, hidden: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor,
        activation: Any, **rest: Any,
    ) -> None:  # fmt: skip
        """Compute one step."""
        assert activation is Activation.SILU
        assert rest.keys() == REST.keys()
        output.copy_((weights[..., None] * (w1 * w2)[ids]).sum(1) * hidden)


@pytest.fixture
def budgets() -> RowBudgets:
    """Of steps of up to 16 rows."""
    return RowBudgets(16, torch.device("cpu"))


@pytest.fixture
def calls() -> list[str]:
    """Names of the layers whose Python ran from compiled code."""
    return []


@pytest.fixture
def flattened(
    budgets: RowBudgets, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[Kernel, FlatExperts]:
    """A kernel that is given pairs, in an engine whose step is under way."""

    def named_runner(name: str) -> Any:
        calls.append(name)
        return {runner.layer_name: runner}[name]

    kernel, runner = Kernel(), SimpleNamespace(layer_name="model.layers.0.experts")
    flat = FlatExperts(kernel.apply, E, "on", budgets)
    flat_operator.flatten(runner, kernel, flat)
    monkeypatch.setattr(flat_operator, "named_runner", named_runner)
    monkeypatch.setattr(flat_operator, "_activation", Activation)
    torch.compiler.reset()
    return kernel, flat


def step(T: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weights of which every third is 0, and ids."""
    generator = torch.Generator().manual_seed(T)
    weights = torch.rand(T, K, generator=generator)
    weights.view(-1)[::3] = 0
    return torch.randn(T, H, generator=generator), weights, torch.randint(E, (T, K), generator=generator)


def test_compiled_code_reads_in_each_step_whether_rows_may_be_rerouted(
    flattened: tuple[Kernel, FlatExperts], budgets: RowBudgets, calls: list[str]
) -> None:
    """One graph for all; a step that is left alone calls the kernel with all slots and none of our Python."""
    kernel, flat = flattened
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    def layer(hidden: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        output = torch.empty_like(hidden)
        kernel.apply(output, hidden, W1, W2, weights, ids, Activation.SILU, **REST)
        return output

    run = torch.compile(layer, backend=keep, fullgraph=True, dynamic=True)
    for T, budget in ((5, LAYER_BUDGET), (7, PROTECTED), (3, LAYER_BUDGET), (5, PROTECTED)):
        calls.clear()
        budgets.announce(np.full(T, budget, dtype=np.int32))
        hidden, weights, ids = step(T)
        with torch.inference_mode():
            found = run(hidden, weights, ids)
        assert calls == ["model.layers.0.experts"] * (budget != PROTECTED)
        expected = torch.empty_like(hidden)
        Kernel().apply(expected, hidden, W1, W2, weights, ids, Activation.SILU, **REST)
        torch.testing.assert_close(found, expected)
        if budget == PROTECTED:
            assert torch.equal(found, expected)
    assert len(graphs) == 1
    assert flat.counts.steps == 2
