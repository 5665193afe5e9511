"""The sleep mode of vLLM keeps the tensors that layers read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.vllm.standins import prepared


def test_tensors_are_buffers_of_the_runner(any_table: Any) -> None:
    """Where the runner is a module, it holds the layer's tensors, which the sleep mode then saves."""
    found = prepared(any_table, {}, torch.nn.Module)
    for layer in found.layers.values():
        assert layer.router is not None
        held = dict(layer.runner.named_buffers())
        for name, tensor in layer.router.tensors().items():
            assert held[f"sere_{name}"] is tensor, name
        assert held["sere_counters"] is layer.router.counters


def test_runner_that_is_no_module(any_table: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Up to 0.20 the runner is not a module: its owner holds the tensors; without one the log warns."""
    owner = torch.nn.Module()
    with caplog.at_level("WARNING", logger="vllm.sere"):
        found = prepared(any_table, {"model.layers.0.experts": owner})
    assert dict(owner.named_buffers())["sere_budgets"] is found.layers[0].budgets.tensor  # type: ignore[union-attr]
    assert "model.layers.1.experts has no module to keep its tensors; do not use sleep level 2" in caplog.text
    assert "model.layers.0" not in caplog.text
