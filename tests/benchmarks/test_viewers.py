"""What is said of the cost of viewers, and what a viewer asks for; the timing itself is run by hand."""

from __future__ import annotations

from typing import Any

import pytest

import viewers


def test_the_ratio_to_no_viewer_has_an_interval() -> None:
    """Of each number of viewers: the median rate, the median of the rounds' ratios, and its interval."""
    rates = {0: [100.0, 200.0, 50.0, 100.0], 1: [99.0, 198.0, 49.5, 99.0], 20: [98.0, 190.0, 48.0, 97.0]}
    head, _, *rows = [line.split() for line in viewers.table(rates).splitlines()]
    assert " ".join(head) == "viewers tokens/s to no viewer 95 %"
    assert rows[0] == ["0", "100.0", "1.0000", "1.0000", "to", "1.0000"]
    assert rows[1] == ["1", "99.0", "0.9900", "0.9900", "to", "0.9900"]
    number, _, ratio, low, _, high = rows[2]
    assert number == "20"
    assert 0.95 <= float(low) < float(ratio) < float(high) <= 0.98


def test_one_round_has_no_interval() -> None:
    """Nothing is said of what a single round cannot tell."""
    assert viewers.table({0: [100.0], 1: [99.0]}).splitlines()[-1].split()[-1] == "-"


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
