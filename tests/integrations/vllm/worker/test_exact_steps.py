"""Steps that are left alone though requests decode: too few rows to change any, or too many beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sere.config import MOST_INT
from sere.integrations.vllm.engine_stats import merge_answers
from sere.integrations.vllm.step_counts import SKIPPED
from sere.integrations.vllm.worker.rules import mixed_rows
from sere.integrations.vllm.worker.state import WorkerState
from sere.policies import LayerShape, RandomReroute
from sere.reroute import Routing, TokenBatch
from tests.support.vllm.standins import SmallEngine, Start, change, new, step, why


def skipped(state: WorkerState) -> dict[str, int]:
    """Steps that were left alone, by reason, without the reasons that there were not."""
    return {kind: count for kind in SKIPPED if (count := getattr(state.counts, kind))}


def layer_steps(state: WorkerState) -> list[int]:
    return [one.steps for one in merge_answers([state.read()]).layers]


def test_one_row_is_left_alone_by_default(start: Start) -> None:
    """At one row M is K: the step is one of few rows, no layer counts it, and the statistics say why."""
    running = start()
    running.prompts("a", "b")
    running.decode("a", steps=3)
    assert skipped(running.state) == {"prompts": 1, "few_rows": 3}
    assert layer_steps(running.state) == [0, 0]
    assert why(running) == (
        "nothing was re-routed: active_experts=auto (4 for 1 row) is not below what these batches read (up "
        "to 4 experts per layer); use a smaller active_experts or larger batches"
    )
    running.decode("a", "b")
    assert (running.state.counts.rerouted, layer_steps(running.state)) == (1, [1, 1])


@pytest.mark.parametrize(
    ("asked", "rows", "left_alone"),
    [
        ([None, None], 2, True),
        ([None, None, None], 3, False),
        ([None, None, "off"], 3, True),
        ([None, None, None, "off"], 4, False),
        ([{"select_top_k": 1}, None], 2, True),
        ([{"select_top_k": 4}, None, None], 3, False),
        ([{"select_top_k": 3}], 1, True),
    ],
    ids=["fits", "more rows", "one is off", "more rows and off", "own S", "own S of all", "one row"],
)
def test_up_to_m_slots_are_left_alone(start: Start, asked: list[Any], rows: int, left_alone: bool) -> None:
    """With M = 8 two rows of four slots fit, whatever their S; requests that are off do not count."""
    running = start(active_experts=8)
    names = [f"r{index}" for index in range(rows)]
    for name, tier in zip(names, asked, strict=True):
        running.prompts(name, tier=tier)
    running.decode(*names)
    assert running.state.counts.few_rows == left_alone
    assert running.state.counts.rerouted == (not left_alone)


def test_other_settings_hold_from_the_next_step_on(start: Start) -> None:
    """A smaller M re-routes the next step of the same rows; a layer of its own M decides for all."""
    running = start(active_experts=8)
    running.prompts("a", "b")
    running.decode("a", "b")
    change(running.state, {"active_experts": {"1": 7}})
    running.decode("a", "b")
    assert (running.state.counts.few_rows, running.state.counts.rerouted) == (1, 1)


def test_counting_only_counts_every_step(start: Start) -> None:
    """With ``count_only`` the experts of a single row, and those beside a long prompt, are counted."""
    running = start()
    running.prompts("a")
    change(running.state, {"count_only": True})
    running.decode("a")
    beside_prompts(running, "a", 40)
    assert skipped(running.state) == {"prompts": 1}
    assert layer_steps(running.state) == [2, 2]


def test_another_rule_is_asked_for_every_row(start: Start) -> None:
    """A rule that is there to be measured sees steps of one row, too."""
    running = start()
    running.prompts("a")
    with running.state.routed_by(RandomReroute(1)):
        running.decode("a")
        assert layer_steps(running.state) == [1, 1]


def beside_prompts(running: SmallEngine, name: str, tokens: int) -> None:
    """Run a step in which one request decodes and another one's prompt is read."""
    request = f"prompt of {tokens}"
    output = step(news=(new(request, tokens),), cached={name: 3})
    running._run(output, {name: 1, request: tokens})


def test_beside_long_prompts_steps_are_left_alone(start: Start) -> None:
    """From 8 E / K = 32 rows of prompts on nothing is re-routed; the step is counted as a mixed one."""
    running = start(active_experts=0)
    running.prompts("a")
    beside_prompts(running, "a", 32)
    assert skipped(running.state) == {"prompts": 1, "mixed": 1}
    assert layer_steps(running.state) == [0, 0]
    assert why(running) == (
        "nothing was re-routed: 1 steps with decoding requests also read so many tokens of prompts that "
        "nearly every expert was needed anyway; such steps are left alone"
    )
    beside_prompts(running, "a", 31)
    assert (running.state.counts.rerouted, running.state.counts.mixed) == (1, 1)


def test_the_layer_with_most_experts_per_slot_decides() -> None:
    """A step is mixed where it is so for every layer; a pipeline stage without layers has no such step."""
    assert mixed_rows([LayerShape(0, 128, 8), LayerShape(1, 60, 4), LayerShape(2, 9, 2)]) == 128
    assert mixed_rows([LayerShape(1, 61, 4)]) == 122
    assert mixed_rows([]) == MOST_INT


@pytest.mark.parametrize(
    ("compiling", "capturing"), [(True, False), (False, True), (False, False)], ids=["code", "graph", "no"]
)
def test_recorded_runs_are_never_skipped(
    monkeypatch: pytest.MonkeyPatch, start: Start, compiling: bool, capturing: bool
) -> None:
    """Compiled code and captured graphs run in later steps too: no step is left alone while they are made."""
    state = start().state
    assert state.budgets is not None
    state.budgets.exact()
    asked: list[int] = []

    class Ids(torch.Tensor):
        """Ids that say they are on a GPU."""

        is_cuda, is_cpu = True, False

    def router(batch: TokenBatch) -> Routing:
        asked.append(len(batch.topk_ids))
        return Routing(batch.topk_ids, batch.topk_weights)

    state.layers[0].router = router  # type: ignore[assignment]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    ids = torch.zeros(1, 4, dtype=torch.int32).as_subclass(Ids)
    state.layers[0].route(ids, torch.ones(1, 4), torch.zeros(1, 16))
    assert asked == [1] * (compiling or capturing)
