"""Progress: a bar on a terminal; elsewhere a line about once a minute, with the time left."""

from __future__ import annotations

import pytest

from sere.cli import progress_bar
from sere.cli.progress_bar import bar
from tests.support.terminal import on_terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows the list's only number."""
    now = [100.0]
    monkeypatch.setattr(progress_bar, "monotonic", lambda: now[0])
    return now


def test_a_line_a_minute_says_what_is_left(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    """However many parts a minute has, it gets one line; at the end another says how long all took."""
    with bar("tuning", 100) as tick:
        for _ in range(50):
            clock[0] += 2.5
            tick()
        tick(25)
    assert capsys.readouterr().err.splitlines() == [
        "tuning: 24 of 100, 01:00 passed, about 03:10 left",
        "tuning: 48 of 100, 02:00 passed, about 02:10 left",
        "tuning: done in 02:05",
    ]


def test_quick_work_prints_its_end_only(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    """Also work with more parts than were announced, whose time left is never below 0."""
    with bar("B=4 off", 2) as tick:
        tick()
        clock[0] += 59
        tick()
    assert capsys.readouterr().err == "B=4 off: done in 00:59\n"
    with bar("B=4 off", 2) as tick:
        clock[0] += 61
        tick(3)
    assert "B=4 off: 3 of 2, 01:01 passed, about 00:00 left" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_bar_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """It is written over in the end, has no colors, and a line says how long all took."""
    with on_terminal(monkeypatch, "stderr", columns) as screen, bar("tuning", 4) as tick:
        tick()
    *bars, last = screen.lines
    assert last == "tuning: done in 00:00"
    assert bars[0].startswith("tuning:   0%|")
    assert "0/4" in bars[0]
    assert {len(line) for line in bars} <= {columns - 1, columns}
    assert not screen.has_colors


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    """With ``TERM=dumb`` nothing is written over: it is as in a file."""
    with on_terminal(monkeypatch, "stderr", 80, term="dumb") as screen, bar("tuning", 4) as tick:
        clock[0] += 61
        tick()
    assert screen.raw.splitlines() == [
        "tuning: 1 of 4, 01:01 passed, about 03:03 left",
        "tuning: done in 01:01",
    ]
