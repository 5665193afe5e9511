"""The benchmark of pairs on re-routed steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import flat_steps
from sere.flatten.costs import ROWS

pytestmark = pytest.mark.checkout


def test_each_case_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each number of experts and least gain has one record, with shape, machine and the measured costs."""
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("sys.argv", ["flat_steps.py", "--quick", "--kernel", "grouped_mm", "--out", str(out)])
    flat_steps.main()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["config"]["T"], one["config"]["min_gain"]) for one in records] == [(8, 0.01), (8, 0.03)]
    assert all(one["machine"]["cpu"] and len(one["break_even"]) == len(ROWS) for one in records)
    assert all(one["experts"] == one["config"]["M"] == 12 for one in records)
    more, fewer = (one["pairs_share"] for one in records)
    assert 0 < fewer < more < 1


def test_steps_are_of_the_layer_that_is_asked_for() -> None:
    """A step reads M experts, and a larger least gain leaves out more slots."""
    kept = []
    for gain in flat_steps.GAINS:
        (step,) = flat_steps.make_steps(flat_steps.prepare(32, 4, 20, gain), 16, 32, 4, 1)
        assert len(step.ids.unique()) == 20
        kept.append(int((step.weights > 0).sum()))
    assert kept[1] < kept[0] <= 64
