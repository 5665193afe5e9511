"""What is said of the cost of viewers, and what a viewer asks for; the timing itself is run by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import viewers


def test_the_ratio_to_no_viewer_has_an_interval() -> None:
    """Of each number of viewers: the median rate, the median of the rounds' ratios, and its interval."""
    rates = {0: [100.0, 200.0, 50.0, 100.0], 1: [99.0, 198.0, 49.5, 99.0], 20: [98.0, 190.0, 48.0, 97.0]}
    processor = {0: [0.01, 0.02, 0.01, 0.01], 1: [0.015, 0.025, 0.015, 0.015], 20: [0.03, 0.04, 0.03, 0.03]}
    head, _, *rows = [line.split() for line in viewers.render(rates, processor).splitlines()]
    assert " ".join(head) == "viewers tokens/s to no viewer 95 % % of a core 95 %"
    assert rows[0] == ["0", "100.0", "1.0000", "1.0000", "to", "1.0000", "0.00", "0.00", "to", "0.00"]
    assert rows[1] == ["1", "99.0", "0.9900", "0.9900", "to", "0.9900", "0.50", "0.50", "to", "0.50"]
    assert rows[2][-4:] == ["2.00", "2.00", "to", "2.00"]
    number, _, ratio, low, _, high = rows[2][:6]
    assert number == "20"
    assert 0.95 <= float(low) < float(ratio) < float(high) <= 0.98


def test_one_round_has_no_interval() -> None:
    """Nothing is said of what a single round cannot tell."""
    last = viewers.render({0: [100.0], 1: [99.0]}, {0: [0.5], 1: [0.75]}).splitlines()[-1]
    assert last.split() == ["1", "99.0", "0.9900", "-", "25.00", "-"]


def test_a_server_at_rest_takes_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read once the server has come to rest, and is per second of the clock."""
    slept: list[float] = []
    monkeypatch.setattr(viewers.time, "sleep", slept.append)
    monkeypatch.setattr(viewers, "perf_counter", iter([100.0, 110.0]).__next__)
    server: Any = SimpleNamespace(processor_s=iter([7.0, 9.0]).__next__)
    assert viewers._idle(server, 10.0) == pytest.approx(0.2)
    assert slept == [viewers.SETTLE_S, 10.0]


def test_a_viewer_asks_once_a_second_for_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page does: only points after the last one, and again for the same where there was none."""
    answers = iter([[], [{"at": 4.5}], [], [{"at": 6.0}]])
    asked: list[tuple[Any, ...]] = []
    slept: list[float] = []

    def fetch(*given: Any) -> dict[str, Any]:
        asked.append(given)
        return {"points": next(answers)}

    monkeypatch.setattr(viewers, "fetch_live", fetch)
    monkeypatch.setattr(viewers.time, "sleep", slept.append)
    with pytest.raises(StopIteration):  # the answers are at their end
        viewers._page("URL")
    assert [since for _, _, since in asked] == [0.0, 0.0, 4.5, 4.5, 6.0]
    assert slept == [1.0] * 4
