"""The work folder: what is finished stays, and belongs to one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sere.errors import InputError
from sere.tune.work import Work, resumable

RUN: dict[str, Any] = {"table": "ab", "plan": {"seed": 0, "prompts_digest": "x"}}


def measure_and_fail(folder: Path) -> None:
    """Finish one measurement, then fail."""
    with resumable(folder, RUN, keep=False) as work:
        work.put("one", [0.1, 2 / 3])
        raise ZeroDivisionError


def test_the_same_run_finds_what_is_finished(tmp_path: Path) -> None:
    """After an error, a note says where it is; the next run reads the same values."""
    folder = tmp_path / "new" / "work"
    with pytest.raises(ZeroDivisionError) as caught:
        measure_and_fail(folder)
    assert "1 finished measurements are kept in" in caught.value.__notes__[0]
    with resumable(folder, RUN, keep=False) as work:
        assert work.done == {"one": [0.1, 2 / 3]}
    assert not folder.exists()


def test_a_run_that_measured_nothing_leaves_nothing(tmp_path: Path) -> None:
    """Neither a folder nor a note."""
    with pytest.raises(ZeroDivisionError) as caught, resumable(tmp_path / "a" / "work", RUN, keep=True):
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    assert not hasattr(caught.value, "__notes__")


def test_a_folder_may_stay(tmp_path: Path) -> None:
    """For further tiers from the same measurements."""
    with resumable(tmp_path / "work", RUN, keep=True) as work:
        work.put("one", 1)
    assert Work(tmp_path / "work", RUN).done == {"one": 1}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"plan": {"seed": 1, "prompts_digest": "x"}}, "seed was 0, now 1"),
        ({"plan": {"seed": 0, "prompts_digest": "y"}}, "the prompts differ"),
        ({"table": "cd"}, "the tables differ"),
    ],
    ids=["seed", "prompts", "table"],
)
def test_another_run_is_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    """With what differs, and nothing is lost."""
    with resumable(tmp_path / "work", RUN, keep=True) as work:
        work.put("one", 1)
    with pytest.raises(InputError, match=f"other settings: {text}"):
        Work(tmp_path / "work", RUN | change)
    assert Work(tmp_path / "work", RUN).done == {"one": 1}


@pytest.mark.parametrize("content", ["{", '{"format": 0, "run": {}, "done": {}}', "[]"])
def test_a_damaged_folder_is_refused(tmp_path: Path, content: str) -> None:
    """It says which folder to delete."""
    (tmp_path / "tuning.json").write_text(content)
    with pytest.raises(InputError, match="damaged, or of another version"):
        Work(tmp_path, RUN)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    """It might be anyone's."""
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="other files"):
        Work(tmp_path, RUN)
