"""Settings that change in all ranks of an engine, or in none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from sere.errors import ConcurrentChange, EngineError, UnsupportedEngine
from sere.integrations.vllm import configure, read_stats
from sere.integrations.vllm.worker.state import WorkerState
from sere.reroute import PreparedLayer, Routing
from sere.table.tiers import Tier
from tests.support.vllm.standins import CPUUnquantizedExperts, Ranks, SmallEngine, decode, prepared


def rank(table: Any, number: int, *, parallel: dict[str, int] | None = None, **settings: Any) -> WorkerState:
    """One of two tensor-parallel ranks."""
    sizes = {"tensor_parallel_size": 2, "rank": number} | (parallel or {})
    return prepared(table, {}, torch.nn.Module, kernel=CPUUnquantizedExperts(), parallel=sizes, **settings)


@pytest.fixture
def ranks(any_table: Any) -> Ranks:
    return Ranks(rank(any_table, 0), rank(any_table, 1))


def written(state: WorkerState) -> list[torch.Tensor]:
    """Return copies of all that the steps of a rank read."""
    tensors = [layer.router.tensors() for layer in state.layers.values() if layer.router is not None]
    assert state.limits is not None
    return [tensor.clone() for named in tensors for tensor in named.values()] + [state.limits.choices.clone()]


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("tried to allocate 2.00 MiB")


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_fails_while_it_prepares(
    ranks: Ranks, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is full on one rank, nothing has changed on any, and the statistics say so."""
    before = [written(state) for state in ranks.states]
    failing = ranks.states[number]
    monkeypatch.setattr(failing.rules, "limits", out_of_memory)
    with pytest.raises(
        EngineError, match=rf"rank {number}: OutOfMemoryError: tried .*; nothing has changed on any rank"
    ):
        configure(ranks, threshold=0.9, keep={0: [3]}, select_top_k=2)
    assert read_stats(ranks).settings["threshold"] == 0.0
    for state, tensors in zip(ranks.states, before, strict=True):
        assert all(map(torch.equal, written(state), tensors))
        assert (state.config.threshold, state.config.select_top_k, state.enabled) == (0.0, 1, True)
    monkeypatch.undo()
    assert configure(ranks, threshold=0.9)["threshold"] == 0.9
    assert [state.config.threshold for state in ranks.states] == [0.9, 0.9]


def test_ranks_that_would_differ(any_table: Any) -> None:
    """Ranks with other tiers in their tables, which similarities do not show, are refused every change."""
    other = any_table.with_tiers({"fast": Tier("fast", 3)})
    engine = Ranks(rank(any_table, 0), rank(other, 1))
    assert any_table.fingerprint == other.fingerprint
    with pytest.raises(EngineError, match="the ranks 0 and 1 have different settings or tables for the engi"):
        configure(engine, threshold=0.9)
    assert [state.config.threshold for state in engine.states] == [0.0, 0.0]
    with pytest.raises(EngineError, match=r"the ranks 0 and 1 have .*: tokens may be wrong; restart"):
        read_stats(engine)


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_fails_while_it_writes(
    ranks: Ranks, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a copy fails all the same, every rank stops re-routing: steps are exact, and the error says so."""
    update = PreparedLayer.update
    mine = [layer.router.prepared for layer in ranks.states[number].layers.values()]  # type: ignore[union-attr]
    monkeypatch.setattr(
        PreparedLayer,
        "update",
        lambda layer, other: out_of_memory() if layer in mine else update(layer, other),
    )
    with pytest.raises(EngineError, match=r"while the change was written: 1 of 2 ranks .* now off in all"):
        configure(ranks, threshold=0.9)
    for state in ranks.states:
        decode(SmallEngine(state), 3)
        assert state.counts.rerouted == 0
        assert state.counts.disabled == 4
    with pytest.raises(EngineError, match="have different settings"):
        read_stats(ranks)


def test_nothing_is_made_where_the_model_runs(any_table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change needs no memory of the device: all that is made is on the host."""
    state = rank(any_table, 0)
    made: list[torch.device] = []
    construct = PreparedLayer.__init__

    def __init__(layer: Any, raw: Any, config: Any, backend: str, device: torch.device) -> None:
        made.append(device)
        construct(layer, raw, config, backend, device)

    monkeypatch.setattr(PreparedLayer, "__init__", __init__)
    for layer in state.layers.values():
        layer.router.prepared.device = torch.device("cpu", 0)  # type: ignore[union-attr]
    configure(Ranks(state), threshold=0.9, select_top_k=2)
    assert [device.index for device in made] == [None, None]


def test_two_changes_at_once(ranks: Ranks) -> None:
    """Of two changes that meet, the later holds on all ranks, and the other is told to come again."""
    call: Callable[..., list[Any]] = ranks.collective_rpc
    met: list[Any] = []

    def interrupted(method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        answers = call(method, args)
        if not met:
            met.append(args)
            configure(ranks, select_top_k=2)
        return answers

    ranks.collective_rpc = interrupted  # type: ignore[method-assign]
    with pytest.raises(ConcurrentChange, match="another change came in between: nothing has changed"):
        configure(ranks, threshold=0.9)
    assert [(s.config.select_top_k, s.config.threshold) for s in ranks.states] == [(2, 0.0), (2, 0.0)]


def test_stages_agree_though_they_hold_different_layers(any_table: Any) -> None:
    """Ranks of two pipeline stages hold other layers, and one none: a change still takes them all."""
    stages = [
        prepared(
            any_table, {}, torch.nn.Module, kernel=CPUUnquantizedExperts(), stage=stage,
            parallel={"pipeline_parallel_size": 3, "rank": number},
        )
        for number, stage in enumerate([(0, 1), (1, 2), (2, 4)])
    ]  # fmt: skip
    engine = Ranks(*stages)
    configure(engine, threshold=0.5, select_top_k=2)
    assert [state.config.threshold for state in stages] == [0.5] * 3
    assert [layer.index for layer in read_stats(engine).layers] == [0, 1]


def test_a_failing_read_is_an_answer(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails while a rank reads its counters is its answer: a raised error would shift later answers."""
    monkeypatch.setattr(ranks.states[0], "counters", None)
    assert "failure" in ranks.collective_rpc("sere_stats", (True,))[0]
    with pytest.raises(EngineError, match="rank 0: "):
        read_stats(ranks)


def test_settings_say_who_holds_what(any_table: Any) -> None:
    """Equal ranks have equal fingerprints; another S, M, threshold or switch is another one."""
    first = rank(any_table, 0)
    for settings in ({"select_top_k": 2}, {"active_experts": 5}, {"threshold": 0.5}, {"keep": {0: (3,)}}):
        other = rank(any_table, 1, **settings)
        assert other.fingerprint != first.fingerprint
        configure(Ranks(first), **settings)
        assert first.fingerprint == other.fingerprint
        first = rank(any_table, 0)
    assert dataclasses.replace(any_table, provenance={"host": "another"}).fingerprint == any_table.fingerprint


@pytest.mark.parametrize("number", [0, 1])
def test_ranks_that_share_the_rows_of_a_step(any_table: Any, number: int) -> None:
    """With sequence-parallel MoE a rank is given its share of the rows, with the budgets of these rows."""
    state = rank(any_table, number, moe={"is_sequence_parallel": True})
    assert state.budgets is not None
    # Five rows are three for each of two ranks; the sixth is padding.
    state.budgets.announce(np.array([1, 2, 3, 4, 5], dtype=np.int32))
    found: list[Any] = []
    layer = state.layers[0]
    layer.router = lambda batch: found.append(batch.row_budgets.tolist()) or Routing(*batch[:2])  # type: ignore[assignment, func-returns-value]
    layer.route(torch.zeros(3, 4, dtype=torch.int32), torch.ones(3, 4), torch.zeros(3, 16))
    assert found == [[[1, 2, 3], [4, 5, -1]][number]]


def test_statistics_of_ranks_with_other_rows(any_table: Any) -> None:
    """Data-parallel engines, and ranks that share rows, add up; tensor-parallel ranks repeat each other."""
    repeating = [rank(any_table, 0), rank(any_table, 1)]
    sharing = [rank(any_table, number, moe={"is_sequence_parallel": True}) for number in (0, 1)]
    other = rank(any_table, 0, parallel={"data_parallel_rank": 1, "data_parallel_size": 2})
    for state in (*repeating, *sharing, other):
        decode(SmallEngine(state, ranks=2 if state in sharing else 1), 3)
    one = read_stats(Ranks(repeating[0]))
    for states, engines, replicas in ((repeating, 1, 1), (sharing, 1, 2), ([*repeating, other], 2, 2)):
        found = read_stats(Ranks(*states))
        assert found.steps_rerouted == 3 * engines
        assert found.skipped["prompts"] == one.skipped["prompts"] * engines
        assert [layer.steps for layer in found.layers] == [3 * replicas] * 2
        assert [layer.rows for layer in found.layers] == [6 * engines / replicas] * 2


@pytest.mark.parametrize(
    ("sizes", "gathers", "text"),
    [
        ({"dp_size": 1}, True, None),
        ({"dp_size": 2}, False, None),
        ({"dp_size": 2}, True, "rows of all ranks"),
        ({"is_sequence_parallel": True}, True, "rows of all ranks"),
        ({"dp_size": 2}, None, "cannot be told"),
    ],
    ids=["one engine", "after the router", "before the router", "shared rows", "unknown"],
)
def test_layers_that_gather(any_table: Any, sizes: dict[str, Any], gathers: bool | None, text: Any) -> None:
    """A layer that gathers the rows of all ranks before its router is refused; others are not."""
    with pytest.raises(UnsupportedEngine, match=text) if text else nullcontext():
        rank(any_table, 0, moe=sizes, gathers=gathers)
