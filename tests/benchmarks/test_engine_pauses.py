"""Figures of an engine's pauses, from what its processes noted."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from engine_pauses import PAUSE_MS, PLUGIN, Notes, Span, figures, installed, judged, spread_ms
from engine_times import ANSWER, BEGIN, BETWEEN, CALL, FOLDER, READ, STEP

ENGINE, WORKER = 1, 2


def span(
    kind: str, began_ms: float, ms: float, *, pid: int = ENGINE, away_ms: float = 0, waited_ms: float = 0,
    name: str = "-",
) -> Span:  # fmt: skip
    """What a process noted, in milliseconds."""
    began = began_ms / 1000
    return Span(pid, kind, name, began, began + ms / 1000, away_ms / 1000, waited_ms / 1000)


# A call within a pause: 3 ms of the engine, which waits 50 ms for a worker, 30 ms of them the worker's own.
CALLED = [
    span(ANSWER, 12, 40, pid=WORKER, waited_ms=10, name="sere_stats"),
    span(CALL, 11, 53, away_ms=50, name="sere_stats"),
    span(BETWEEN, 10, 60, away_ms=50, waited_ms=4),
]
REST = [
    span(BEGIN, 100, 20, pid=WORKER, waited_ms=5),
    span(STEP, 120, 9, pid=WORKER, waited_ms=2),
    span(READ, 200, 8, pid=WORKER, name="port"),
    # An answer to another engine's call, and one that came before: neither is part of the call.
    span(ANSWER, 5, 1, pid=WORKER, name="sere_stats"),
]


def test_a_call_is_the_engine_s_time_and_the_worker_s() -> None:
    """Without waiting for a core or for each other; the pause around the call has both, too."""
    found = figures([*CALLED, *REST])
    assert found["calls"] == {"sere_stats": 1, "port": 1}
    assert found["own_call_ms"]["most"] == pytest.approx(3 + 30)
    assert found["call_ms"] == {"count": 2, "median": 53.0, "p99": 53.0, "p99_9": 53.0, "most": 53.0}
    assert found["own_pause_ms"]["most"] == pytest.approx(60 - 50 - 4 + 30)
    assert (found["pause_ms"]["count"], found["pause_ms"]["most"]) == (2, 60.0)
    assert (found["step_ms"]["most"], found["own_step_ms"]["most"]) == (9.0, 7.0)


def test_a_worker_in_the_engine_s_process_counts_once() -> None:
    """There its answer is part of the engine's own time."""
    found = figures([span(CALL, 0, 10, name="sere_stats"), span(ANSWER, 1, 8)])
    assert found["own_call_ms"]["most"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("spans", "wrong"),
    [
        ([*CALLED, *REST], []),
        ([*CALLED, *REST, span(BETWEEN, 300, 999, waited_ms=950)], []),
        ([*CALLED, *REST, span(BETWEEN, 300, 101)], ["pause took 101.0 ms"]),
        ([*CALLED, *REST, span(BEGIN, 300, 101, pid=WORKER)], ["pause took 101.0 ms"]),
        ([*CALLED, *REST, span(CALL, 300, 102)], ["call took 102.0 ms"]),
        ([*CALLED, *REST, span(READ, 300, 102, pid=WORKER)], ["call took 102.0 ms"]),
        (CALLED, ["got none"]),
        ([], ["got none"]),
    ],
    ids=["fine", "a busy machine", "a pause", "a reader", "a call", "a read", "no steps", "nothing"],
)
def test_only_the_engine_s_own_time_is_judged(spans: list[Span], wrong: list[str]) -> None:
    """More than 100 ms in a call or between steps is wrong, and so is an engine that noted nothing."""
    assert PAUSE_MS == 100
    found = judged(figures(spans))
    assert len(found) == len(wrong)
    assert all(text in one for text, one in zip(wrong, found, strict=True))


def test_the_end_of_values() -> None:
    """The middle, the last hundredth and thousandth, and the most."""
    values = [float(number) for number in range(2000)]
    assert spread_ms(values) == {"count": 2000, "median": 1000, "p99": 1980, "p99_9": 1998, "most": 1999}
    assert spread_ms([]) == {"count": 0, "median": 0, "p99": 0, "p99_9": 0, "most": 0}


def test_notes_are_read_once_and_whole(tmp_path: Path) -> None:
    """A line that is still being written is read when it has ended."""
    notes, path = Notes(tmp_path), tmp_path / "7.txt"
    path.write_text("call sere_stats 1.5 2.5 0.25 0.125\nstep - 3")
    assert notes.take() == [Span(7, CALL, "sere_stats", 1.5, 2.5, 0.25, 0.125)]
    with path.open("a") as file:
        file.write(".0 4.0 0 0\n")
    (tmp_path / "8.txt").write_text("begin - 5.0 6.0 0 0\n")
    assert [(one.pid, one.kind, one.began) for one in notes.take()] == [(7, STEP, 3.0), (8, BEGIN, 5.0)]
    assert notes.take() == []


def test_a_server_finds_the_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a plug-in of vLLM for processes that are started meanwhile, beside what was set before."""
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    before = dict(os.environ)
    folder = tmp_path / "notes"
    with installed(folder):
        assert os.environ["VLLM_PLUGINS"] == f"{PLUGIN},other"
        assert os.environ[FOLDER] == str(folder)
        (found,) = distributions(path=[str(folder)])
        (point,) = found.entry_points
        assert (point.group, point.name) == ("vllm.general_plugins", PLUGIN)
        module, function = point.value.split(":")
        code = f"import {module}; print({module}.__file__, callable({module}.{function}))"
        told = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert told.stdout.split() == [str(folder / "engine_times.py"), "True"]
    assert dict(os.environ) == before
