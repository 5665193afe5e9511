"""An engine that re-routes nothing says why: in its log, once for each reason, and in its statistics."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from sere.integrations.vllm.worker.equip import _before_shutdown
from sere.integrations.vllm.worker.guard import FIRST_LOOK
from sere.reroute import COUNTERS
from tests.support.vllm.standins import NAMES, Start, change, decode, new, step, why


def test_rerouting_is_not_warned_of(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """An engine that re-routes says nothing, neither after many steps nor at the end."""
    engine = start()
    decode(engine, 3 * FIRST_LOOK)
    engine.state.guard.last_look()
    assert why(engine) is None
    assert not caplog.messages


def test_scoring_of_prompts(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Prompts alone, as log-likelihood tasks and max_tokens=1 send them, are named once, after some steps."""
    engine = start()
    for number in range(FIRST_LOOK - 1):
        engine.prompts(f"p{number}")
    assert not caplog.messages
    for number in range(20 * FIRST_LOOK):
        engine.prompts(f"q{number}")
    assert len(caplog.messages) == 1
    assert f"no decode step was seen in {FIRST_LOOK - 1} calls" in caplog.messages[0]
    assert f"no decode step was seen in {21 * FIRST_LOOK - 1} calls" in str(why(engine))


SETTINGS: list[tuple[dict[str, Any], str]] = [
    (
        {"active_experts": 15},
        "active_experts=15 is not below what these batches read (15.0 experts per layer)",
    ),
    ({"active_experts": 16}, "active_experts=16 is not below the 16 experts of a layer"),
    ({"select_top_k": 4}, "select_top_k=4 keeps all 4 slots of a token"),
    ({"threshold": 2.0}, "no expert had a similarity of threshold=2 or more"),
]


@pytest.mark.parametrize(("settings", "reason"), SETTINGS)
def test_settings_that_move_nothing(
    start: Start, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], reason: str
) -> None:
    """Decode steps under settings that leave nothing to re-route are named by the setting at fault."""
    engine = start(**settings)
    decode(engine, 5 * FIRST_LOOK)
    assert reason in str(why(engine))
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]


def test_requests_that_keep_their_experts(start: Start) -> None:
    """Requests that all ask for "off", or for an S of K, are named, not the engine's settings."""
    for tier in ("off", 4):
        engine = start()
        decode(engine, tier=tier)
        assert "in each of 200 steps with decoding requests, all requests kept their own experts" in str(
            why(engine)
        )


def test_the_settings_are_named_whatever_else_was_left_alone(start: Start) -> None:
    """An S of K is the reason also after steps of one row and after those beside long prompts."""
    engine = start(select_top_k=4)
    engine.prompts(*NAMES)
    engine.decode(*NAMES, steps=3)
    engine.decode(NAMES[0])
    engine._run(step(news=(new("long", 40),), cached={NAMES[0]: 3}), {NAMES[0]: 1, "long": 40})
    assert (engine.state.counts.protected, engine.state.counts.prompts) == (5, 1)
    for kind in ("mixed", "few_rows"):
        setattr(engine.state.counts, kind, 1)
        assert "select_top_k=4 keeps all 4 slots of a token" in str(why(engine))


def test_layers_of_another_stage(start: Start) -> None:
    """A stage may leave alone what another one re-routes; then nothing is said."""
    engine = start()
    decode(engine, 3)
    engine.state.counts.rerouted, engine.state.counts.protected = 0, 3
    assert why(engine) is None


def test_rows_that_are_not_known(start: Start) -> None:
    """Where the device drops drafted tokens in every step, the statistics say so."""
    engine = start()
    engine.state.counts.unknown = 7
    assert "in 7 steps the device dropped drafted tokens" in str(why(engine))


@pytest.mark.parametrize(
    ("skipped", "where", "name"),
    [((0, 1), "re-routed: ", "layers.0"), ((1,), "re-routed in 1 of 2 layers: ", "layers.1")],
)
def test_layers_that_are_passed_by(
    start: Start, caplog: pytest.LogCaptureFixture, skipped: tuple[int, ...], where: str, name: str
) -> None:
    """Layers whose routers vLLM does not ask are counted and the first is named, once; others are not."""
    engine = start(skipped)
    decode(engine, 5 * FIRST_LOOK)
    engine.state.guard.last_look()
    assert len(caplog.messages) == 1
    assert f"nothing was {where}" in caplog.messages[0]
    assert "decode steps ran, but vLLM did not call the router of these layers" in caplog.messages[0]
    assert f"(first layer: model.{name}.experts)" in caplog.messages[0]
    assert f"nothing was {where}" in str(why(engine))


def test_reading_in_the_middle_of_a_step(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A scrape from another thread between a step's announcement and its layers is no false alarm."""
    engine = start()
    scraped = []

    def scrape() -> None:
        reader = threading.Thread(target=lambda: scraped.append(engine.state.report()))
        reader.start()
        reader.join()

    engine.prompts(*NAMES)
    engine.before_layers = scrape
    engine.decode(*NAMES, steps=2)
    engine.state.guard.last_look()
    first = scraped[0]
    assert first["steps"]["rerouted"] == 1
    assert first["layers"][0]["counters"][COUNTERS.index("steps")] == 0
    assert not caplog.messages


@pytest.mark.parametrize("settings", [{"enabled": False}, {"count_only": True}])
def test_nothing_was_asked_for(
    start: Start, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
) -> None:
    """An engine that is switched off, or only counts, re-routes nothing on purpose."""
    engine = start()
    engine.prompts("before")
    change(engine.state, settings)
    decode(engine)
    engine.state.guard.last_look()
    assert why(engine) is None
    assert not caplog.messages


def test_unused_engine(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """An engine that ran no step is no surprise."""
    engine = start(threshold=2.0)
    engine.state.guard.last_look()
    assert why(engine) is None
    assert not caplog.messages


def test_short_run_is_named_at_shutdown(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A run of a few steps is judged when the worker shuts down; a device that failed is no second error."""
    engine, ended = start(active_experts=15), []
    worker = SimpleNamespace(shutdown=lambda: ended.append("worker"))
    _before_shutdown(worker, engine.state.guard.last_look)
    decode(engine, 3)
    assert not caplog.messages
    worker.shutdown()
    worker.shutdown()
    assert [message for message in caplog.messages if "active_experts=15" in message] == caplog.messages
    assert len(caplog.messages) == 1
    engine.state.counters = "gone"  # type: ignore[assignment]
    engine.state.guard.restart = lambda: None  # type: ignore[method-assign]
    worker.shutdown()
    assert ended == ["worker"] * 3


def test_statistics_line(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """The reason is also logged where the statistics line is due, however few steps there were."""
    engine = start(active_experts=15)
    engine.prompts(*NAMES)
    engine.steps.reporter.log()
    engine.decode(*NAMES, steps=3)
    engine.steps.reporter.log()
    assert "no decode step was seen in 1 call of the model" in caplog.messages[0]
    assert "active_experts=15 is not below" in caplog.messages[1]
    assert len(caplog.messages) == 2


def test_new_settings_are_judged_by_themselves(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """What was re-routed under the old settings does not hide that the new ones re-route nothing."""
    engine = start()
    decode(engine)
    change(engine.state, {"threshold": 2.0})
    assert len(caplog.messages) == 1
    assert "threshold=2 is above every similarity in the table" in caplog.messages[0]
    engine.decode(*NAMES, steps=FIRST_LOOK + 1)
    assert len(caplog.messages) == 2
    assert "no expert had a similarity of threshold=2" in caplog.messages[1]
    change(engine.state, {"select_top_k": 4, "threshold": 0.0})
    assert "select_top_k=4 is not smaller than the model's top_k=4" in caplog.messages[2]
    change(engine.state, {"select_top_k": 1})
    engine.decode(*NAMES, steps=FIRST_LOOK + 1)
    assert len(caplog.messages) == 3


def test_reset_hides_nothing(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Counters that are set to zero again and again change neither an alarm nor its absence."""
    engine = start()
    decode(engine, 3)
    assert why(engine, reset=True) is None
    engine.prompts("last")
    engine.state.guard.last_look()
    assert not caplog.messages
    assert "no decode step was seen in 1 call of the model" in str(why(engine))
    engine = start(active_experts=15)
    engine.prompts(*NAMES)
    for _ in range(FIRST_LOOK):
        engine.decode(*NAMES)
        why(engine, reset=True)
    assert len(caplog.messages) == 1
    assert "active_experts=15 is not below" in caplog.messages[0]


def test_replayed_steps_are_not_judged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Steps whose ids come from a recording pass the counters by on purpose."""
    engine = start((0, 1))
    with engine.state.guard.silenced():
        decode(engine, 2 * FIRST_LOOK)
    engine.state.guard.last_look()
    assert not caplog.messages
