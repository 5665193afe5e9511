"""Finished cases outlive an interruption, and only for the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sere.errors import InputError
from sere.eval.checkpoint import Checkpoint


def test_cases_are_there_again_for_the_same_run_only(tmp_path: Path) -> None:
    """Another run with the same key finds the cases; one with another key is told what differs."""
    path = tmp_path / "partial.json"
    Checkpoint(path, {"seed": 1, "sizes": (1, 8)}).put("B=1 off", {"steps": 3})
    assert Checkpoint(path, {"seed": 1, "sizes": [1, 8]}).get("B=1 off") == {"steps": 3}
    before = path.read_text()
    with pytest.raises(InputError, match=r"partial.json: .* differs in seed \(1 there, 2 here\); sizes \("):
        Checkpoint(path, {"seed": 2, "sizes": [1]})
    assert path.read_text() == before


def test_what_differs_is_named_down_to_its_part_and_without_digests(tmp_path: Path) -> None:
    """A value within a part is named with both values; a digest, which says nothing, by its name alone."""
    path = tmp_path / "partial.json"
    there = {"plan": {"prompts": {"file": "a.txt"}, "prompts_digest": "0" * 32}}
    Checkpoint(path, there).put("B=1 off", {})
    here = {"plan": {"prompts": {"file": "b.txt"}, "prompts_digest": "1" * 32}}
    with pytest.raises(InputError) as caught:
        Checkpoint(path, here)
    text = 'differs in plan prompts file ("a.txt" there, "b.txt" here); plan prompts digest. To go on'
    assert text in str(caught.value)
    assert "0000" not in str(caught.value)


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
