"""Finished cases outlive an interruption, and only for the same run."""

from __future__ import annotations

from pathlib import Path

from sere.eval.checkpoint import Checkpoint


def test_cases_are_there_again_for_the_same_run_only(tmp_path: Path) -> None:
    """Another run with the same key finds the cases; one with another key finds none."""
    path = tmp_path / "partial.json"
    Checkpoint(path, {"seed": 1, "sizes": (1, 8)}).put("B=1 off", {"steps": 3})
    assert Checkpoint(path, {"seed": 1, "sizes": [1, 8]}).get("B=1 off") == {"steps": 3}
    assert Checkpoint(path, {"seed": 2, "sizes": [1, 8]}).get("B=1 off") is None


def test_damaged_files_count_as_empty_and_done_runs_leave_none(tmp_path: Path) -> None:
    """A file that is no JSON is ignored; after the run there is no file."""
    path = tmp_path / "partial.json"
    path.write_text('{"key": {')
    kept = Checkpoint(path, {})
    assert kept.get("x") is None
    kept.put("x", {})
    assert Checkpoint(path, {}).get("x") == {}
    kept.delete()
    assert not path.exists()
    nowhere = Checkpoint(None, {})
    nowhere.put("x", {"a": 1})
    assert nowhere.get("x") == {"a": 1}
    nowhere.delete()
