"""Finished cases outlive an interruption, and only for the same run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sere.eval.finished import FinishedCases


def test_cases_are_there_again_for_the_same_run_only(tmp_path: Path) -> None:
    """Another run with the same key finds the cases; one with another key finds none."""
    path = tmp_path / "partial.json"
    FinishedCases(path, {"seed": 1, "sizes": (1, 8)}).put("B=1 off", {"steps": 3})
    assert FinishedCases(path, {"seed": 1, "sizes": [1, 8]}).get("B=1 off") == {"steps": 3}
    assert FinishedCases(path, {"seed": 2, "sizes": [1, 8]}).get("B=1 off") is None


def test_cases_of_another_run_are_named_before_they_are_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says how many cases there were and what differs: values, or words in place of digests."""
    path = tmp_path / "partial.json"
    plan = {"seed": 1, "batch_sizes": [1, 8], "questions_digest": "a"}
    FinishedCases(path, {"plan": plan, "weights": "a", "table": None}).put("B=1 off", {})
    other = {"seed": 2, "batch_sizes": [1], "questions_digest": "b"}
    with caplog.at_level(logging.WARNING, "sere"):
        FinishedCases(path, {"plan": other, "weights": "b", "table": {"metric": "cka"}})
    (line,) = caplog.messages
    assert line.startswith(f"sere: starting over: 1 finished cases in {path} belong to another run: ")
    assert (
        "seed was 1, now 2; batch_sizes was 1 8, now 1; the questions differ; the model's weights differ"
        in line
    )


@pytest.mark.parametrize(
    ("with_file", "cases", "note"),
    [
        pytest.param(True, 0, None, id="nothing finished"),
        pytest.param(False, 1, None, id="no file"),
        pytest.param(
            True, 1, "finished cases: 1 (kept in {}); the same command continues after them", id="kept"
        ),
    ],
)
def test_whatever_ends_a_run_says_what_is_kept(
    tmp_path: Path, with_file: bool, cases: int, note: str | None
) -> None:
    """The note is there if a case is finished and there is a file for it."""
    path = tmp_path / "partial.json"
    kept = FinishedCases(path if with_file else None, {})
    for number in range(cases):
        kept.put(str(number), {})
    with pytest.raises(KeyboardInterrupt) as caught, kept.going_on():
        raise KeyboardInterrupt
    assert getattr(caught.value, "__notes__", []) == ([] if note is None else [note.format(path)])


def test_damaged_files_count_as_empty_and_done_runs_leave_none(tmp_path: Path) -> None:
    """A file that is not JSON is ignored; after the run there is no file."""
    path = tmp_path / "partial.json"
    path.write_text('{"key": {')
    kept = FinishedCases(path, {})
    assert kept.get("x") is None
    kept.put("x", {})
    assert FinishedCases(path, {}).get("x") == {}
    kept.delete()
    assert not path.exists()
    nowhere = FinishedCases(None, {})
    nowhere.put("x", {"a": 1})
    assert nowhere.get("x") == {"a": 1}
    nowhere.delete()
