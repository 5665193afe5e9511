"""What ``sere demo`` asks at each batch size, and what it refuses before it calibrates."""

from __future__ import annotations

from pathlib import Path

import pytest

from sere.bench.demo import Round
from sere.cli import main
from sere.cli.demo import plan_rounds


def test_questions_grow_with_the_batch_to_a_limit() -> None:
    """Few at small batches, which are slow, the most at other sizes; a size named twice runs once."""
    assert plan_rounds([1, 8, 64, 8], None, tasks=10) == [Round(1, 10), Round(8, 60), Round(64, 240)]


def test_no_step_is_smaller_than_its_batch_size() -> None:
    """There is a question for each row, whatever is asked for."""
    assert plan_rounds([512], None, tasks=10) == [Round(512, 512)]
    assert plan_rounds([8, 32], 1, tasks=10) == [Round(8, 10), Round(32, 32)]


def test_questions_are_counted_per_task_where_asked_for() -> None:
    """``--per-task`` counts questions of each task, as it does in ``sere eval``, at every batch size."""
    assert plan_rounds([1, 64], 50, tasks=10) == [Round(1, 500), Round(64, 500)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch-size", "8", "0"], "argument --batch-size: expected a whole number of at least 1"),
        (["--per-task", "0"], "argument --per-task: expected a whole number of at least 1"),
    ],
)
def test_bad_numbers_are_refused_before_work(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Rows and questions below one end in one line; nothing is calibrated or written."""
    assert main(["demo", "--out", str(tmp_path), *flags]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "calibrating" not in captured.err
    assert not list(tmp_path.iterdir())
