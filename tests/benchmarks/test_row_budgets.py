"""The benchmark of a step's cost on the host announces steps that re-route, and says whether it is small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import row_budgets

pytestmark = pytest.mark.checkout


@pytest.mark.parametrize(("target", "code", "word"), [(1e9, 0, "met"), (0.0, 1, "missed")])
def test_each_load_is_timed_and_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    target: float, code: int, word: str,
) -> None:  # fmt: skip
    """A record has each load at each number of requests; the exit code is 1 where the target is missed."""
    out = tmp_path / "out.jsonl"
    arguments = ["--requests", "8", "--steps", "3", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["row_budgets.py", *arguments])
    monkeypatch.setattr(row_budgets, "MOST_US", target)
    with pytest.raises(SystemExit) as ended:
        row_budgets.main()
    assert ended.value.code == code
    (record,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["load"], one["requests"]) for one in record["cases"]] == [
        (load, 8) for load in row_budgets.LOADS
    ]
    assert all(0 < one["p20"] <= one["median"] <= one["p80"] for one in record["cases"])
    assert capsys.readouterr().out.strip().endswith(word)
