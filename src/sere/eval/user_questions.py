"""Prompts and questions from a user's own file, each with its position there for errors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sere.errors import DataError, name_some
from sere.eval.questions import prompt_key
from sere.texts import Row, naming, read_rows


@dataclass(frozen=True, slots=True)
class FileQuestion:
    """A question with its right answer.

    Attributes:
        prompt: What the model reads: a text or a conversation.
        answer: The right answer, without white space around it.
        pattern: Finds the answer in the output: the last match counts, or its first group if it has one.
            None if the complete output is the answer.
        task: The name of the task; all questions of a file have one.
    """

    prompt: Row
    answer: str
    pattern: re.Pattern[str] | None = None
    task: str = "questions"

    @property
    def key(self) -> str:
        """What distinguishes it from other questions."""
        return "\0".join([prompt_key(self.prompt), self.answer, self.pattern.pattern if self.pattern else ""])

    def is_right(self, output: str) -> bool:
        """Return whether the answer in an output is exactly right; white space around it does not count."""
        if self.pattern is not None:
            matches = list(self.pattern.finditer(output))
            if not matches:
                return False
            output = matches[-1][min(1, self.pattern.groups)] or ""
        return output.strip() == self.answer


def read_prompts(path: str | os.PathLike[str], *, field: str = "prompt") -> tuple[list[Row], dict[str, Any]]:
    """Read the prompts of a file.

    Args:
        path: A ``.txt`` file, one prompt per line; or rows (``.jsonl``, ``.json``, ``.parquet``) whose
            ``field`` holds a text or a conversation. An answer at the end of a conversation is left off.
        field: The field. If a row has no ``prompt``, its ``messages`` or ``conversations`` are taken.

    Returns:
        The prompts; and for a record the file's name, how many prompts there are, and how many rows were
        skipped because they are null or blank.

    Raises:
        DataError: The file is missing, of another kind or not text, a row is not what was expected (the error
            names it), or there is no prompt.
        MissingDependency: A parquet file needs pyarrow.
    """
    return _read(Path(path), "prompts", field)


def read_questions(
    path: str | os.PathLike[str], *, field: str = "prompt"
) -> tuple[list[FileQuestion], dict[str, Any]]:
    """Read the questions of a file.

    Args:
        path: Rows as for `read_prompts`, with ``answer`` (a text or a number) and, if the answer is only a
            part of the output, ``pattern``, a regular expression.
        field: As for `read_prompts`.

    Returns:
        The questions, and what a record says of them, as for `read_prompts`.

    Raises:
        DataError: As for `read_prompts`; or an answer is missing, or a pattern is not a regular expression.
        MissingDependency: A parquet file needs pyarrow.
    """
    found, source = _read(Path(path), "questions", field)
    return [_question(row) for row in found], source


def _read(path: Path, name: str, field: str) -> tuple[list[Row], dict[str, Any]]:
    with naming(name):
        rows = list(read_rows(path, field=field, lines=True))
    found = [_without_answer(row, name) for row in rows if row.content is not None]
    skipped = len(rows) - len(found)
    if not found:
        raise DataError(
            f"{name}: {path} has no {name} ({skipped} rows are null or blank); expected at least one"
        )
    return found, {"file": path.name, "count": len(found), "skipped": skipped}


def _without_answer(row: Row, name: str) -> Row:
    """Leave out the assistant's messages at the end of a conversation, which the model should write."""
    if row.content is None or isinstance(row.content, str):
        return row
    messages: Sequence[Mapping[str, Any]] = row.content
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise DataError(
            f"{name}: {row.origin}: expected a message that the model should answer, got only answers"
        )
    return replace(row, content=tuple(messages))


def _question(row: Row) -> FileQuestion:
    answer, pattern = row.fields.get("answer"), row.fields.get("pattern")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        came = (
            _shown(answer) if "answer" in row.fields else f"a row of {name_some(row.fields) or 'text only'}"
        )
        raise DataError(
            f"questions: {row.origin}: expected the right answer, a text or a number, in field 'answer'; got "
            f"{came}"
        )
    if pattern is None:
        return FileQuestion(row, str(answer).strip())
    if not isinstance(pattern, str):
        raise DataError(
            f"questions: {row.origin}: expected a regular expression in field 'pattern', "
            f"got {_shown(pattern)}"
        )
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(
            f"questions: {row.origin}: pattern {pattern!r} is not a regular expression: {error}"
        ) from error
    return FileQuestion(row, str(answer).strip(), compiled)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:80]
