"""Prompts and questions from a user's own file, each with the line that it stands in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sere.errors import DataError

Message = Mapping[str, str]
"""A message of a conversation: ``role`` and ``content``."""

# What the ShareGPT form calls those who speak.
_ROLES = {"human": "user", "gpt": "assistant"}

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is to continue.

    Attributes:
        content: A text, or the messages of a conversation up to the one that the model is to give.
        line: Where it stands in its file, from 1.
    """

    content: str | tuple[Message, ...]
    line: int

    @property
    def key(self) -> str:
        """What tells it from other prompts."""
        return self.content if isinstance(self.content, str) else json.dumps(self.content)


@dataclass(frozen=True, slots=True)
class FileQuestion:
    """A question with its right answer.

    Attributes:
        prompt: What the model reads.
        answer: The right answer, without white space around it.
        pattern: Finds the answer in the output: the last match counts, of it the first group where there is
            one. None: the whole output is the answer.
        task: The one task that all questions of a file are.
    """

    prompt: Prompt
    answer: str
    pattern: re.Pattern[str] | None = None
    task: str = "questions"

    @property
    def key(self) -> str:
        """What tells it from other questions."""
        return "\0".join([self.prompt.key, self.answer, self.pattern.pattern if self.pattern else ""])

    def is_right(self, output: str) -> bool:
        """Say whether the answer in an output is exactly right, white space around it aside."""
        if self.pattern is not None:
            matches = list(self.pattern.finditer(output))
            if not matches:
                return False
            output = matches[-1][min(1, self.pattern.groups)] or ""
        return output.strip() == self.answer


@dataclass(frozen=True, slots=True)
class Examples(Generic[_Item]):
    """What a file holds.

    Attributes:
        items: Prompts or questions, in the file's order.
        source: For a record: the file's name, how many items there are, how many rows were skipped for
            holding null or blank text only.
    """

    items: list[_Item]
    source: dict[str, Any]


def read_prompts(path: str | os.PathLike[str]) -> Examples[Prompt]:
    """Read the prompts of a file.

    Args:
        path: A ``.txt`` file, one prompt a line; or a ``.jsonl`` file of objects with ``prompt`` (a text or
            messages), else ``messages`` or ``conversations``. An answer at the end of messages is left off.

    Raises:
        DataError: The file is missing, of another kind, no text, or holds no prompt; a line is not what was
            expected (its number is given).
    """
    return _read(Path(path), "prompts", lambda _row, prompt, _place: prompt)


def read_questions(path: str | os.PathLike[str]) -> Examples[FileQuestion]:
    """Read the questions of a file.

    Args:
        path: A ``.jsonl`` file of objects as `read_prompts` takes them, with ``answer`` (a text or a number)
            and, where the answer is only a part of the output, ``pattern``, a regular expression.

    Raises:
        DataError: As `read_prompts`; or an answer is missing, or a pattern is no regular expression.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        raise DataError(
            f"questions: {path} is a text file; questions have answers: give a .jsonl file whose lines are "
            'like {"prompt": "...", "answer": "..."}'
        )
    return _read(path, "questions", _question)


def _read(path: Path, name: str, make: Callable[[Mapping[str, Any], Prompt, str], _Item]) -> Examples[_Item]:
    """Read all rows of a file and make an item of each that holds a prompt."""
    items, skipped = [], 0
    for place, row in _rows(path, name):
        prompt = None if row is None else _prompt(row, place)
        if row is None or prompt is None:
            skipped += 1
        else:
            items.append(make(row, prompt, str(place)))
    if not items:
        raise DataError(
            f"{name}: {path} holds none ({skipped} rows are null or blank); expected at least one"
        )
    return Examples(items, {"file": path.name, "count": len(items), "skipped": skipped})


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    name: str
    line: int

    def __str__(self) -> str:
        return f"{self.name}: {self.path} line {self.line}"


def _rows(path: Path, name: str) -> Iterator[tuple[_Place, dict[str, Any] | None]]:
    """Yield each line that is not empty as an object, or None for null."""
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".jsonl"):
        raise DataError(f"{name}: {path} ends in {path.suffix!r}; expected a .txt or .jsonl file")
    for line, text in enumerate(_text(path, name).split("\n"), start=1):
        if not text.strip():
            continue
        place = _Place(path, name, line)
        if suffix == ".txt":
            yield place, {"prompt": text}
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise DataError(f"{place} is not JSON: {error}") from error
        if row is not None and not isinstance(row, dict):
            raise DataError(f"{place}: expected an object, got {type(row).__name__}")
        yield place, row


def _text(path: Path, name: str) -> str:
    """Return a file's text with plain line ends."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise DataError(f"{name}: {path}: {what}; expected a .txt or .jsonl file")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: {path} is not UTF-8 text ({error.reason}); convert it first") from error
    if "\0" in text:
        raise DataError(f"{name}: {path} is a binary file, not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _prompt(row: Mapping[str, Any], place: _Place) -> Prompt | None:
    """Return a row's prompt, or None where it is null or blank."""
    names = [name for name in ("prompt", "messages", "conversations") if name in row]
    if not names:
        raise DataError(
            f"{place} has no field 'prompt', 'messages' or 'conversations'; it has {', '.join(row) or 'none'}"
        )
    value = next((row[name] for name in names if row[name] is not None), None)
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        return Prompt(value, place.line)
    if not isinstance(value, list):
        raise DataError(f"{place}: expected a text or a list of messages, got {type(value).__name__}")
    messages = [_message(message, place) for message in value]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise DataError(f"{place}: expected a message that the model is to answer, got its answers only")
    return Prompt(tuple(messages), place.line)


def _message(value: Any, place: _Place) -> Message:
    """Return a message in the form of chat templates."""
    if isinstance(value, dict):
        role = value.get("role", value.get("from"))
        content = value.get("content", value.get("value"))
        if isinstance(content, list):
            content = _joined(content)
        if isinstance(role, str) and isinstance(content, str):
            return {"role": _ROLES.get(role, role), "content": content}
    raise DataError(
        f'{place}: expected messages of a role and a text, like {{"role": "user", "content": "..."}}; '
        f"got {json.dumps(value)[:80]}"
    )


def _joined(parts: Sequence[Any]) -> str | None:
    """Return the texts of a message in parts as one, or None where a part is something else."""
    found = [part.get("text") if isinstance(part, dict) else None for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    return "".join(texts) if len(texts) == len(found) else None


def _question(row: Mapping[str, Any], prompt: Prompt, place: str) -> FileQuestion:
    answer, pattern = row.get("answer"), row.get("pattern")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        came = "none" if "answer" not in row else json.dumps(answer)[:80]
        raise DataError(f"{place}: expected a text or a number in field 'answer', got {came}")
    if pattern is not None and not isinstance(pattern, str):
        raise DataError(
            f"{place}: expected a regular expression in field 'pattern', got {json.dumps(pattern)}"
        )
    try:
        compiled = None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise DataError(f"{place}: pattern {pattern!r} is no regular expression: {error}") from error
    return FileQuestion(prompt, str(answer).strip(), compiled)
