"""Layers, settings and budgets of one worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sere.bench.target import random_table
from sere.integrations.vllm.engine_stats import merge_answers
from sere.integrations.vllm.worker.start_log import log_start
from tests.support.tiny import uneven_model
from tests.support.vllm.standins import (
    CPUUnquantizedExperts,
    Router,
    SmallEngine,
    Start,
    change,
    decode,
    prepared,
    why,
)


def test_layers_of_different_shapes(caplog: pytest.LogCaptureFixture) -> None:
    """Layers of 16 and 12 experts, 4 and 2 slots, are each checked against their own and both re-routed."""
    caplog.set_level("WARNING", logger="vllm.sere")
    table = random_table(uneven_model())
    state = prepared(table, {}, torch.nn.Module, kernel=CPUUnquantizedExperts())
    assert [(layer.shape.num_experts, layer.shape.top_k) for layer in state.layers.values()] == [
        (16, 4),
        (12, 2),
    ]
    engine = SmallEngine(state)
    decode(engine, 3)
    found = merge_answers([state.report()])
    assert found.nothing_changed is None
    assert all(layer.slots_rerouted > 0 for layer in found.layers)
    assert not caplog.messages
    change(state, {"select_top_k": 2})
    assert "select_top_k=2 is not smaller than top_k=2 of layer 1" in caplog.messages[0]


def test_stage_without_moe_layers(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A pipeline stage of dense layers starts, says so, and is no reason for an alarm."""
    caplog.set_level("INFO", logger="vllm.sere")
    dense = start(stage=(2, 4), parallel={"pipeline_parallel_size": 2, "rank": 1})
    log_start(dense.state)
    decode(dense)
    dense.state.guard.last_look()
    assert caplog.messages == [
        "sere: this pipeline stage has no MoE layers and re-routes nothing; the others may"
    ]
    other = start(parallel={"pipeline_parallel_size": 2})
    decode(other)
    for stages in ((dense, other), (other, dense)):
        joined = merge_answers([engine.state.report() for engine in stages])
        assert joined.nothing_changed is None
        assert (len(joined.layers), joined.kernel) == (2, "CPUUnquantizedExperts")
        assert joined.skipped["protected"] == 0 < joined.steps_rerouted


def test_stage_whose_layers_keep_all_experts(start: Start) -> None:
    """A step is re-routed if the layers of any stage re-route it."""
    settings = {"layers": {1: {"select_top_k": 4}}, "parallel": {"pipeline_parallel_size": 2}}
    stages = [start(stage=(index, index + 1), **settings) for index in range(2)]
    for running in stages:
        decode(running, 3)
    assert [running.state.counts.protected for running in stages] == [0, 3]
    for order in (stages, stages[::-1]):
        joined = merge_answers([running.state.report() for running in order])
        assert (joined.steps_rerouted, joined.skipped["protected"], joined.nothing_changed) == (3, 0, None)


def test_default_device(any_table: Any) -> None:
    """What the plug-in makes lies where the model runs, whatever torch's default device is."""
    with torch.device("meta"):
        state = prepared(any_table, {}, torch.nn.Module, kernel=CPUUnquantizedExperts())
        log_start(state)
        assert state.budgets is not None
        state.budgets.announce(np.array([1, 1], dtype=np.int32))
        change(state, {"threshold": 0.1, "keep": {0: [3]}})
    assert state.budgets.tensor.tolist()[:3] == [1, 1, -1]
    engine = SmallEngine(state)
    decode(engine, 2)
    assert why(engine) is None


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0), (2, 1)])
def test_ranks_of_the_same_layers_say_it_once(
    start: Start, caplog: pytest.LogCaptureFixture, rank: int, lines: int
) -> None:
    """Of ranks that hold the same layers the first speaks; so does the first of the next stage."""
    parallel = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "rank": rank}
    engine = start(active_experts=15, parallel=parallel)
    decode(engine)
    assert len(caplog.messages) == lines


@pytest.mark.parametrize(("below", "lines"), [(1, 0), (0, 1), (-1000, 1)], ids=["S < K", "S = K", "S > K"])
def test_settings_that_re_route_nothing(
    any_table: Any, caplog: pytest.LogCaptureFixture, below: int, lines: int
) -> None:
    """Beside the line that says that re-routing is active stands a warning where S is K or more."""
    K = any_table.identity.top_k
    found = prepared(any_table, {}, torch.nn.Module, select_top_k=K - below)
    with caplog.at_level("INFO", logger="vllm.sere"):
        log_start(found)
    assert "re-routing active" in caplog.text
    warnings = [line for line in caplog.messages if "nothing will be re-routed" in line]
    assert len(warnings) == lines
    # Of an expert kernel that is not known.
    assert [line for line in caplog.messages if "--moe-backend chooses one" in line]
    text = f"select_top_k={K - below} is not smaller than the model's top_k={K}, so nothing will be re-routed"
    assert all(text in line for line in warnings)


def test_one_wait_for_all_layers(any_table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the counters copies them from the device once, however many layers there are."""
    found = prepared(any_table, {}, torch.nn.Module)
    copies = []
    copy = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: copies.append(tensor) or copy(tensor))
    layers = found.report()["layers"]
    assert [layer["index"] for layer in layers] == [0, 1]
    assert len(copies) == 1


def test_experts_for_images_are_left_alone(any_table: Any) -> None:
    """Of a layer with experts for text and others for images (ERNIE-4.5-VL), those for text are re-routed.

    While a prompt with images is read, experts for text are given a part of the rows: such a step is exact.
    """
    state = prepared(any_table, {}, torch.nn.Module, kernel=CPUUnquantizedExperts(), active_experts=0)
    router = Router(4)
    state.add(SimpleNamespace(layer_name="model.layers.0.mlp.vision_experts", router=router))
    assert vars(router) == {"top_k": 4}
    assert [layer.name for layer in state.layers.values()] == [f"model.layers.{i}.experts" for i in (0, 1)]
    engine = SmallEngine(state)
    engine.prompts("text")
    engine.decode("text", steps=2)
    assert state.counts.rerouted == 2
    engine.prompts("image", images=True)
    assert (state.counts.rerouted, state.counts.unknown) == (2, 1)
    engine.decode("text", "image")
    assert (state.counts.rerouted, state.counts.unknown) == (3, 1)
    engine.decode("text", "image", computed=1)
    assert (state.counts.rerouted, state.counts.unknown) == (3, 2)
