"""A worker's counters are read between two steps: for the metrics' port and the line of statistics."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sere.integrations.vllm.worker import reporter
from sere.integrations.vllm.worker.reporter import Reporter
from sere.reroute import COUNTERS
from tests.support.vllm.standins import NAMES, Start

STEPS = COUNTERS.index("steps")


class Timer:
    """A ``threading.Timer`` that fires when it is told to."""

    started: list[Timer]

    def __init__(self, seconds: float, act: Callable[..., None], arguments: list[Any]) -> None:
        self.seconds, self.fire, self.cancelled = seconds, lambda: act(*arguments), False

    def start(self) -> None:  # noqa: D102
        self.started.append(self)

    def cancel(self) -> None:  # noqa: D102
        self.cancelled = True


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[Timer]:
    Timer.started = []
    monkeypatch.setattr(reporter.threading, "Timer", Timer)
    caplog.set_level(logging.INFO, logger="vllm.sere")
    return Timer.started


def elsewhere(act: Callable[[], Any]) -> Any:
    """Return what a function returns in another thread."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    return found[0]


def test_nobody_reads_within_a_step(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape between a step's announcement and its layers gets what was counted before the step."""
    monkeypatch.setattr(reporter, "_WAIT_S", 0)
    monkeypatch.setattr(reporter, "INTERVAL_S", 0)
    engine, scraped = start(), []
    read = engine.steps.reporter.read
    engine.prompts(*NAMES)
    read()
    engine.before_layers = lambda: scraped.append(elsewhere(read))
    engine.decode(*NAMES, steps=2)
    scraped.append(elsewhere(read))
    assert [report["steps"]["rerouted"] for report in scraped] == [0, 0, 2]
    for report in scraped:
        assert [layer["counters"][STEPS] for layer in report["layers"]] == [report["steps"]["rerouted"]] * 2


def test_first_reader_waits_for_the_step(start: Start) -> None:
    """A reader that has no older report gets one as soon as the step ends."""
    engine, found = start(), []
    reader = threading.Thread(target=lambda: found.append(engine.steps.reporter.read()))
    engine.prompts(*NAMES)
    engine.before_layers = reader.start
    engine.decode(*NAMES)
    reader.join()
    assert found[0]["layers"][0]["counters"][STEPS] == found[0]["steps"]["rerouted"] == 1


def test_many_readers_are_one(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the port is asked, the counters are read once a second."""
    now, reads = [10.0], []
    engine = start()
    report = engine.state.report
    monkeypatch.setattr(reporter, "monotonic", lambda: now[0])
    monkeypatch.setattr(engine.state, "report", lambda: reads.append(now[0]) or report())
    for _ in range(40):
        engine.steps.reporter.read()
        now[0] += 0.125
    assert reads == [10.0, 11.0, 12.0, 13.0, 14.0]


def test_a_short_burst_is_logged(start: Start, timers: list[Timer], caplog: pytest.LogCaptureFixture) -> None:
    """The line comes ``log_seconds`` after the first step that it counts, with all until then."""
    engine = start(log_seconds=5)
    engine.prompts(*NAMES)
    engine.decode(*NAMES, steps=3)
    assert [timer.seconds for timer in timers] == [5]
    elsewhere(lambda: timers[0].fire())
    assert "3 steps re-routed, 1 skipped" in caplog.messages[-1]
    lines = len(caplog.messages)
    engine.decode(*NAMES)
    assert (len(timers), len(caplog.messages)) == (2, lines)
    timers[1].fire()
    assert "4 steps re-routed, 1 skipped" in caplog.messages[-1]


@pytest.mark.parametrize(("seconds", "rank"), [(0, 0), (5, 1)], ids=["off", "another rank"])
def test_no_line(start: Start, timers: list[Timer], seconds: float, rank: int) -> None:
    """With ``log_seconds=0``, and in ranks but the first, nothing is prepared."""
    engine = start(log_seconds=seconds, parallel={"rank": rank})
    engine.prompts(*NAMES)
    assert timers == []


def test_last_line_at_shutdown(start: Start, timers: list[Timer], caplog: pytest.LogCaptureFixture) -> None:
    """What was counted since the last line is logged when the worker shuts down, once."""
    engine = start(log_seconds=60)
    engine.steps.reporter.last_line()
    assert caplog.messages == []
    engine.prompts(*NAMES)
    engine.decode(*NAMES)
    engine.steps.reporter.last_line()
    engine.steps.reporter.last_line()
    assert [line for line in caplog.messages if "1 steps re-routed, 1 skipped" in line] == caplog.messages
    assert len(caplog.messages) == 1
    assert timers[0].cancelled


def test_nothing_is_kept_for_the_log(
    start: Start, timers: list[Timer], caplog: pytest.LogCaptureFixture
) -> None:
    """A line that is due when the engine is gone is not logged, and did not keep the engine."""
    state = start(log_seconds=60).state
    Reporter(state).after_step()
    timers[-1].fire()
    assert caplog.messages == []


def test_nothing_is_logged_while_the_engine_warms_up(
    start: Start, timers: list[Timer], caplog: pytest.LogCaptureFixture
) -> None:
    """A timer that runs is stopped, one that has fired logs nothing, and no step starts another."""
    engine = start(log_seconds=60)
    reporter = engine.steps.reporter
    engine.prompts(*NAMES)
    reporter.pause()
    assert timers[0].cancelled
    timers[0].fire()
    engine.decode(*NAMES)
    assert (caplog.messages, len(timers)) == ([], 1)
    reporter.resume()
    engine.decode(*NAMES)
    timers[1].fire()
    assert len(caplog.messages) == 1
