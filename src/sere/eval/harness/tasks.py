"""sere's own tasks as files that lm-eval reads: a YAML file and a JSONL file each, no network needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sere.eval.tasks import ANSWER_MARK, TASK_NAMES, Question, questions

PREFIX = "sere_"
"""What the names of the tasks begin with: ``sere_addition`` generates, ``sere_addition_choice`` scores."""

CHOICE = "_choice"
GENERATED, CHOSEN = "sere_generate", "sere_choice"
"""Tags: all tasks that generate, and all that score."""

_CHOICES = 4


def own_names() -> list[str]:
    """Return the names of all tasks and tags that `write_tasks` writes."""
    made = [f"{PREFIX}{name}{ending}" for name in TASK_NAMES for ending in ("", CHOICE)]
    return [*made, GENERATED, CHOSEN]


def write_tasks(
    folder: str | Path,
    *,
    tasks: Sequence[str] = TASK_NAMES,
    per_task: int = 100,
    seed: int = 0,
    max_new_tokens: int = 256,
) -> list[str]:
    """Write held-out questions of sere's own tasks as tasks of lm-eval, for its ``--include_path``.

    Of each task there are two. ``sere_NAME`` generates until a line ends and compares what follows the last
    ``>`` with the answer. ``sere_NAME_choice`` asks which of four worked solutions is most likely; they
    differ in the answer at their end, and the wrong ones are other questions' answers.

    Args:
        folder: Made if it is missing; files of these names are overwritten.
        tasks: Names of sere's tasks.
        per_task: Questions of each, at least 1.
        seed: The same seed gives the same questions.
        max_new_tokens: Most tokens of a generated answer.

    Returns:
        The names of the tasks.

    Raises:
        ValueError: A task is unknown, or has fewer questions.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for task in tasks:
        asked = questions(task, split="test", count=per_task, seed=seed)
        for made, rows in (
            (_generating(task, max_new_tokens), [_row(one) for one in asked]),
            (_choosing(task), [_with_choices(asked, index) for index in range(len(asked))]),
        ):
            data = folder / f"{made['task']}.jsonl"
            data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
            # Beside the files: the user's cache of data sets is no place for what may be gone tomorrow.
            kept = {"data_files": {"test": str(data)}, "cache_dir": str(folder / ".cache")}
            config = made | {"dataset_path": "json", "dataset_kwargs": kept}
            # JSON is YAML.
            text = json.dumps(config, indent=2)
            (folder / f"{made['task']}.yaml").write_text(f"{text}\n", encoding="utf-8")
            names.append(made["task"])
    return names


def _generating(task: str, max_new_tokens: int) -> dict[str, Any]:
    answer = {"function": "regex", "regex_pattern": f"{ANSWER_MARK}([^{ANSWER_MARK}]*)$", "group_select": -1}
    return _common(f"{PREFIX}{task}", GENERATED) | {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": max_new_tokens, "do_sample": False},
        "filter_list": [{"name": "answer", "filter": [answer, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def _choosing(task: str) -> dict[str, Any]:
    return _common(f"{PREFIX}{task}{CHOICE}", CHOSEN) | {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _common(name: str, tag: str) -> dict[str, Any]:
    # The prompt ends with a line end, which lm-eval would hand to the first token of a continuation.
    return {
        "task": name, "tag": [tag], "test_split": "test", "doc_to_text": "prompt", "target_delimiter": "",
        "metadata": {"version": 1.0},
    }  # fmt: skip


def _row(one: Question) -> dict[str, Any]:
    return {"prompt": one.prompt, "answer": one.answer}


def _with_choices(asked: Sequence[Question], index: int) -> dict[str, Any]:
    """Return a question with its solution and others that end with other questions' answers."""
    one = asked[index]
    others = (asked[(index + step) % len(asked)].answer for step in range(1, len(asked)))
    wrong = [answer for answer in dict.fromkeys(others) if answer != one.answer][: _CHOICES - 1]
    steps = one.solution.removesuffix(one.answer)
    right = index % (len(wrong) + 1)
    answers = [*wrong[:right], one.answer, *wrong[right:]]
    return {"prompt": one.prompt, "choices": [steps + answer for answer in answers], "right": right}
