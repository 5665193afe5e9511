"""The comparison of predicted and measured times finds the ceilings that made the times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import step_time
from sere.step_time import Ceilings

pytestmark = pytest.mark.checkout

TRUE = Ceilings(2e9, 5e10)


def record(setting: str, rows: int, after: float, **changes: Any) -> dict[str, Any]:
    """A record of the tiny preset whose times are those that the ceilings predict."""
    one: dict[str, Any] = {
        "setting": setting, "batch_size": rows, "subject": {"model": "tiny", "layers": 2, "top_k": 4},
        "config": {"mode": "eager"}, "experts": {"distinct_before": 12.0, "distinct_after": after},
        "provenance": {"machine": {"cpu": "c", "threads": 2}, "commit": "abc"},
    }  # fmt: skip
    mine, off = step_time.seconds(one, TRUE), step_time.seconds(one, TRUE, off=True)
    return one | {"tpot_ms": {"p50": 1e3 * mine}, "speedup": {"p50": off / mine}} | changes


def records() -> list[dict[str, Any]]:
    return [
        record(setting, rows, after)
        for rows in (1, 8, 64)
        for setting, after in (("off", 12.0), ("sere", 6.0), ("sere:active_experts=3", 3.0))
    ]


def test_ceilings_are_fitted_where_they_were_not_measured() -> None:
    """From the times alone, and then the ratios are right."""
    (group,) = step_time.compare(records(), {})
    assert not group["measured"]
    assert group["ceilings"]["bytes_per_s"] == pytest.approx(2e9, rel=0.05)
    assert group["cells_compared"] == 6
    assert group["largest_error"] < 0.02


def test_measured_ceilings_are_used() -> None:
    """Of the same processor, threads and dtype; others are fitted."""
    other = Ceilings(2e9, 1e9)
    (group,) = step_time.compare(records(), {("c", 2, "bfloat16"): other})
    assert group["measured"]
    assert group["largest_error"] > 0.05
    (group,) = step_time.compare(records(), {("c", 1, "bfloat16"): other})
    assert not group["measured"]


def test_pairs_are_the_slots_with_weight() -> None:
    """As in a prediction, whatever the engine computed; all slots of engines from before flattening."""
    experts = {"slots_computed": 0.7}
    assert step_time.share_with_weight({"experts": experts}) == 1.0
    counted = {"steps": 0, "slots": 0, "pairs": 0, "whole": 96}
    assert step_time.share_with_weight({"experts": experts, "flattening": counted}) == 0.7


def test_the_newest_record_of_a_case_counts(tmp_path: Path) -> None:
    """One that was measured again replaces the old one."""
    file = tmp_path / "records.jsonl"
    lines = [record("sere", 8, 6.0), record("sere", 8, 5.0), record("sere", 16, 6.0)]
    file.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    found = [(one["batch_size"], one["experts"]["distinct_after"]) for one in step_time.read([file])]
    assert found == [(8, 5.0), (16, 6.0)]


def test_records_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    """Replays, vanilla engines, other loads than decoding, and runs that counted no experts."""
    lines = [
        record("sere", 8, 6.0), record("replay sere", 8, 6.0), record("vanilla", 8, 6.0),
        record("sere", 8, 6.0, measure="ttft"), record("sere", 8, 6.0, experts=None),
    ]  # fmt: skip
    file = tmp_path / "records.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    assert len(step_time.read([file, tmp_path / "missing"])) == 1


def test_the_script_writes_groups_and_keeps_ceilings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured ceilings are in the record, and stay there when it is made again without measuring."""
    file, out = tmp_path / "records.jsonl", tmp_path / "out.json"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in records()))
    monkeypatch.setattr(step_time, "measure_here", lambda *_: TRUE)
    for flags in (["--measure"], []):
        argv = ["step_time.py", "--records", str(file), "--out", str(out), *flags]
        monkeypatch.setattr("sys.argv", argv)
        step_time.main()
        value = json.loads(out.read_text())
        assert [one["ceilings"]["flops_per_s"] for one in value["ceilings"]] == [5e10]
        assert len(value["groups"]) == 1
