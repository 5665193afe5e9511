"""The questions of an evaluation, as tokens and as marks; those of sere's own tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from sere.errors import DataError, InputError, did_you_mean
from sere.eval.tasks import TASK_NAMES, Question, english, questions
from sere.texts import Row, encode, has_template, naming


class Asked(Protocol):
    """A question whose answer can be checked, of a task or of a user's file."""

    @property
    def task(self) -> str:
        """The task under which its result is counted."""

    @property
    def prompt(self) -> str | Row:
        """What the model reads."""

    @property
    def key(self) -> str:
        """What distinguishes it from other questions."""

    def is_right(self, output: str) -> bool:
        """Return whether an output answers it exactly."""


def held_out(per_task: int, *, tasks: Sequence[str] | None = None, seed: int = 0) -> list[Question]:
    """Return held-out questions of all tasks in turn.

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


def encode_prompts(tokenizer: Any, prompts: Sequence[str | Row], *, chat: bool = False) -> list[list[int]]:
    """Return the token ids of each prompt, with the special tokens that the tokenizer puts in front.

    Args:
        tokenizer: The model's tokenizer.
        prompts: Texts, or conversations, which go through the tokenizer's chat template if it has one.
        chat: Give a text as a user's message if the tokenizer has a chat template.

    Raises:
        DataError: The chat template refuses a prompt, or a prompt has no tokens.
    """
    return [_encode(tokenizer, prompt, chat) for prompt in prompts]


def prompt_key(prompt: str | Row) -> str:
    """Return what distinguishes a prompt from others: its text, or its messages as JSON."""
    content = prompt.content if isinstance(prompt, Row) else prompt
    return content if isinstance(content, str) else json.dumps(content, default=str)


def takes_template(tokenizer: Any, prompts: Sequence[str | Row]) -> bool:
    """Return whether there are plain texts, and a chat template to give them as a user's messages."""
    plain = any(isinstance(one.content if isinstance(one, Row) else one, str) for one in prompts)
    return plain and has_template(tokenizer)


def mark(tokenizer: Any, asked: Sequence[Asked], answers: Sequence[Sequence[int]]) -> list[bool]:
    """Return for each question whether its answer, given as token ids, is exactly right."""
    texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    return [question.is_right(text) for question, text in zip(asked, texts, strict=True)]


def _encode(tokenizer: Any, prompt: str | Row, chat: bool) -> list[int]:
    row = prompt if isinstance(prompt, Row) else Row(repr(prompt[:40]), prompt)
    if isinstance(row.content, str) and chat and has_template(tokenizer):
        row = replace(row, content=({"role": "user", "content": row.content},))
    with naming("prompts"):
        ids = encode(row.text(tokenizer, generation_prompt=True), tokenizer)
    if not ids:
        raise DataError(f"prompts: {row.origin} has no tokens; expected at least one")
    return ids
