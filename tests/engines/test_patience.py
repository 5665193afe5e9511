"""How long another process is waited for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sere.engines.patience import Patience


def times(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Let the clock show these times, one at each look."""
    clock: Iterator[float] = iter(seconds)
    monkeypatch.setattr("sere.engines.patience.time.monotonic", lambda: next(clock))


def test_ends_after_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short looks add up to the time on the clock."""
    times(monkeypatch, 100.0, 109.0, 118.0, 119.9, 120.0)
    patience = Patience(20.0)
    assert [patience.lasts() for _ in range(4)] == [True, True, True, False]


def test_a_machine_that_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes between two looks count as ten seconds."""
    times(monkeypatch, 0.0, 1.0, 431.0, 432.0, 439.0, 440.0)
    patience = Patience(20.0)
    assert [patience.lasts() for _ in range(5)] == [True, True, True, True, False]
