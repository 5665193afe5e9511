"""How often each expert of a worker's layers was chosen and ran, and the answers of several workers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sere.errors import ConfigError, EngineError, UnsupportedEngine
from sere.integrations.vllm import configure, read_expert_counts, read_stats
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.worker import layer as layers
from sere.integrations.vllm.worker.state import WorkerState
from tests.support.expert_counts import RecordedRouter
from tests.support.vllm.standins import (
    NAMES,
    CPUUnquantizedExperts,
    Ranks,
    SmallEngine,
    Start,
    decode,
    prepared,
)

ON = {"count_experts": True}


def found(*states: WorkerState) -> list[list[list[int]]]:
    """The counts of an engine's layers, chosen and ran."""
    return [[list(one.chosen), list(one.ran)] for one in read_expert_counts(Ranks(*states))]


def test_counts_are_those_of_plain_loops(start: Start) -> None:
    """In each layer: the router's choice in the rows of re-routed steps, and what ran in its place."""
    engine = start(requests=ON)
    routers = [RecordedRouter(layer.router, 16) for layer in engine.state.layers.values()]
    for layer, router in zip(engine.state.layers.values(), routers, strict=True):
        layer.router = router  # type: ignore[assignment]
    decode(engine, 3)
    counts = found(engine.state)
    assert counts == [router.found for router in routers]
    assert all(sum(chosen) == 3 * 6 * 4 and chosen != ran for chosen, ran in counts)
    assert [one.name for one in read_expert_counts(Ranks(engine.state))] == [
        layer.name for layer in engine.state.layers.values()
    ]


def test_steps_that_are_left_alone_are_not_counted(start: Start) -> None:
    """Prompts only, and every step while re-routing is off, count no expert."""
    engine = start(requests=ON)
    engine.prompts(*NAMES)
    assert sum(found(engine.state)[0][0]) == 0
    configure(Ranks(engine.state), enabled=False)
    engine.decode(*NAMES)
    assert sum(found(engine.state)[0][0]) == 0
    configure(Ranks(engine.state), enabled=True, count_only=True)
    engine.decode(*NAMES)
    chosen, ran = found(engine.state)[0]
    assert chosen == ran
    assert sum(chosen) == 6 * 4


def test_counts_are_reset_with_the_others(start: Start) -> None:
    """They are set to zero where they lie, because graphs and compiled code write there."""
    engine = start(requests=ON)
    addresses = [layer.experts.data_ptr() for layer in engine.state.layers.values()]  # type: ignore[union-attr]
    decode(engine, 2)
    before = found(engine.state)
    assert found(engine.state) == before
    configure(Ranks(engine.state), threshold=0.0)
    read_stats(Ranks(engine.state), reset=True)
    assert sum(map(sum, found(engine.state)[0])) == 0
    engine.decode(*NAMES, steps=2)
    assert found(engine.state) == before
    assert [layer.experts.data_ptr() for layer in engine.state.layers.values()] == addresses  # type: ignore[union-attr]


def test_off_means_no_tensor_and_no_operation(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default nothing is counted; who asks is told what to start the engine with."""
    monkeypatch.setattr(layers, "route_counted", None)
    engine = start()
    decode(engine, 2)
    assert [layer.experts for layer in engine.state.layers.values()] == [None, None]
    with pytest.raises(
        UnsupportedEngine, match='not counted in this engine: start it with "count_experts": '
    ):
        read_expert_counts(Ranks(engine.state))
    with pytest.raises(ConfigError, match="'count_experts' cannot be changed while the engine runs"):
        configure(Ranks(engine.state), count_experts=True)
    with pytest.raises(ConfigError, match="count_experts: expected true or false, got 1"):
        PluginConfig.from_mapping({"count_experts": 1})


def worker(table: Any, number: int = 0, **options: Any) -> WorkerState:
    """A worker that has decoded three steps."""
    sizes = {"tensor_parallel_size": 2, "rank": number} | options.pop("parallel", {})
    ranks = 2 if options.get("moe") else 1
    state = prepared(
        table, {}, torch.nn.Module, kernel=CPUUnquantizedExperts(), parallel=sizes, requests=ON, **options
    )
    decode(SmallEngine(state, ranks=ranks), 3)
    return state


def test_workers_together(any_table: Any) -> None:
    """Tensor-parallel ranks repeat each other; ranks with other rows add up; stages have other layers."""
    repeating = [worker(any_table, number) for number in (0, 1)]
    sharing = [worker(any_table, number, moe={"is_sequence_parallel": True}) for number in (0, 1)]
    other = worker(any_table, parallel={"data_parallel_rank": 1, "data_parallel_size": 2})
    stages = [
        worker(any_table, number, stage=stage, parallel={"pipeline_parallel_size": 2})
        for number, stage in enumerate([(0, 1), (1, 2)])
    ]
    one = found(repeating[0])
    assert found(*repeating) == one
    assert found(*stages) == one
    assert found(*repeating, other) == [[[2 * n for n in row] for row in layer] for layer in one]
    # Each rank is given the first half of the rows here, with its own budgets.
    assert [sum(chosen) for chosen, _ in found(*sharing)] == [sum(chosen) for chosen, _ in one]


def test_workers_that_fail_or_differ(any_table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of an engine whose workers fail, or hold other settings, are refused."""
    states = [worker(any_table, 0), worker(any_table, 1, threshold=0.5)]
    with pytest.raises(EngineError, match="the ranks 0 and 1 have different settings"):
        found(*states)
    monkeypatch.setattr(states[0], "layers", None)
    with pytest.raises(EngineError, match="rank 0: AttributeError"):
        found(*states)
