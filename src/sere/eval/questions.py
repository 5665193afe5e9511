"""The held-out questions of an evaluation, as tokens and as marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sere.errors import DataError, InputError, did_you_mean
from sere.eval.tasks import TASK_NAMES, Question, english, is_correct, questions


def held_out(per_task: int, *, tasks: Sequence[str] | None = None, seed: int = 0) -> list[Question]:
    """Return held-out questions, tasks interleaved, so that any stretch of them holds all tasks.

    Args:
        per_task: Questions of each task, at least 1.
        tasks: Names of the tasks; all if None.
        seed: The same seed gives the same questions.

    Raises:
        InputError: A task is unknown or ``per_task`` is not positive.
        DataError: A task cannot fill ``per_task`` different questions.
    """
    names = list(TASK_NAMES if tasks is None else tasks)
    unknown = next((name for name in names if name not in TASK_NAMES), None)
    if unknown is not None:
        raise InputError(f"tasks: unknown task {unknown!r}{did_you_mean(unknown, TASK_NAMES)}")
    if per_task < 1:
        raise InputError(f"questions: expected at least 1 per task, got {per_task}")
    try:
        columns = [questions(name, split="test", count=per_task, seed=seed) for name in names]
    except ValueError as error:
        raise DataError(f"questions: {error}") from error
    return [question for row in zip(*columns, strict=True) for question in row]


def held_out_english(count: int, *, seed: int = 0) -> list[str]:
    """Return held-out English passages.

    Raises:
        DataError: There are not ``count`` different ones.
    """
    try:
        return english(split="test", count=count, seed=seed)
    except ValueError as error:
        raise DataError(f"text: {error}") from error


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, with the special tokens that the tokenizer puts in front."""
    return [list(tokenizer(text)["input_ids"]) for text in texts]


def mark(tokenizer: Any, asked: Sequence[Question], answers: Sequence[Sequence[int]]) -> list[bool]:
    """Say for each question whether its answer, given as token ids, is exactly right."""
    texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    return [is_correct(question, text) for question, text in zip(asked, texts, strict=True)]
