"""Each step of a model runner is announced to the layers before the model runs."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import UnsupportedEngine
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.step_counts import StepCounts
from sere.integrations.vllm.worker.flat_experts import FlatKernels
from sere.integrations.vllm.worker.row_budgets import RowBudgets
from sere.integrations.vllm.worker.step_limits import StepLimits
from sere.integrations.vllm.worker.steps import Steps
from sere.policies import LayerShape
from sere.reroute.constants import LAYER_BUDGET, LIMITS, PADDING_BUDGET
from tests.support.vllm.standins import ALL, engine_config, new, step


class Announced:
    """A state that records what is announced."""

    def __init__(self) -> None:
        self.config = RerouteConfig(select_top_k=2)
        self.plugin_config = PluginConfig(reroute=self.config, log_seconds=0)
        self.enabled, self.count_only, self.other_experts = True, False, False
        self.budgets = RowBudgets(8, torch.device("cpu"))
        self.policy = self.sere = object()
        self.shapes = [LayerShape(0, 16, 4)]
        self.limits, self.rules = StepLimits(1, (), torch.device("cpu")), SimpleNamespace(allowed=ALL)
        own = {None: torch.full((1, LIMITS), self.config.select_top_k, dtype=torch.int32)}
        self.limits.write(own, own, {None: 0})
        self.flat, self.skips_from = FlatKernels(why_not="no kernel"), 0
        self.counts, self.guard = StepCounts(), SimpleNamespace(step=lambda: None)
        self.vllm_config, self.lock = engine_config(rank=0), threading.RLock()


class RunnerV2:
    """vLLM's V2 model runner in miniature: the batch's order comes back from ``prepare_inputs``."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def execute_model(self, scheduler_output: Any, *, dummy_run: bool = False) -> None:  # noqa: D102
        if not dummy_run:
            self.prepare_inputs(scheduler_output, object(), object(), 0)

    def prepare_inputs(self, scheduler_output: Any, *_: Any) -> Any:  # noqa: D102
        return self.batch

    def _dummy_run(self, rows: int) -> None:
        self.execute_model(step(), dummy_run=True)


def test_second_model_runner() -> None:
    """V2: budgets follow the order of the batch that its preparation returns; a dummy step is exact."""
    batch = SimpleNamespace(req_ids=["b", "a"], num_scheduled_tokens=np.array([1, 1]), num_tokens=2)
    state, runner = Announced(), RunnerV2(batch)
    Steps(runner, state).watch()  # type: ignore[arg-type]
    output = step(news=(new("a", 3), new("b", 4, 1)))
    runner.execute_model(output)
    assert state.budgets.tensor.tolist() == [PADDING_BUDGET] * 8
    runner.execute_model(step(cached={"a": 3, "b": 4}))
    assert state.budgets.tensor.tolist() == [1, LAYER_BUDGET, *[PADDING_BUDGET] * 6]
    runner._dummy_run(4)
    assert state.budgets.tensor.tolist() == [PADDING_BUDGET] * 8
    assert state.counts == StepCounts(rerouted=1, prompts=1, least_budget=1)


def test_drafts_dropped_on_the_device() -> None:
    """V2: where the device drops drafted tokens, rows cannot be told apart: the step passes, exact."""
    batch = SimpleNamespace(req_ids=["a"], num_scheduled_tokens=np.array([3]), num_tokens=2)
    state, runner = Announced(), RunnerV2(batch)
    Steps(runner, state).watch()  # type: ignore[arg-type]
    runner.execute_model(step(news=(new("a", 3),)))
    runner.execute_model(step(cached={"a": 3}, drafts={"a": [1, 2]}))
    assert state.budgets.tensor.tolist() == [PADDING_BUDGET] * 8
    assert state.counts == StepCounts(unknown=2)


def test_unknown_model_runner() -> None:
    """A model runner that shows no batch is refused by name."""
    with pytest.raises(UnsupportedEngine, match="SimpleNamespace: expected vLLM's GPUModelRunner"):
        Steps(SimpleNamespace(), Announced()).watch()  # type: ignore[arg-type]
