"""sere's own tasks as files of lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sere.eval.harness.tasks import own_names, write_tasks
from sere.eval.tasks import TASK_NAMES, questions


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_ten_tasks_are_written_twice(tmp_path: Path) -> None:
    """Each task generates and scores, and both have the held-out questions of the seed."""
    names = write_tasks(tmp_path, per_task=3, seed=5)
    assert sorted(names) == sorted(set(own_names()) - {"sere_generate", "sere_choice"})
    assert len(names) == 2 * len(TASK_NAMES) == 20
    for name in names:
        config = json.loads((tmp_path / f"{name}.yaml").read_text())
        assert config["task"] == name
        rows = lines(Path(config["dataset_kwargs"]["data_files"]["test"]))
        task = name.removeprefix("sere_").removesuffix("_choice")
        asked = questions(task, split="test", count=3, seed=5)
        assert [row["prompt"] for row in rows] == [one.prompt for one in asked]


def test_the_right_choice_is_the_solution(tmp_path: Path) -> None:
    """The others differ from it, and its place varies."""
    write_tasks(tmp_path, tasks=["addition"], per_task=8)
    rows = lines(tmp_path / "sere_addition_choice.jsonl")
    asked = questions("addition", split="test", count=8)
    assert [row["choices"][row["right"]] for row in rows] == [one.solution for one in asked]
    assert all(len(set(row["choices"])) == 4 for row in rows)
    assert {row["right"] for row in rows} == {0, 1, 2, 3}
