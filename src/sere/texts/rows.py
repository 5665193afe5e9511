"""What one row of a source holds: a text or a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sere.errors import DataError, name_some
from sere.texts.chat import Message, messages_of, render, says_nothing
from sere.texts.sources import CONVERSATIONS, Source, open_source

# Fields that are looked for if nobody names one.
_DEFAULTS = ("text", "prompt")
# Where lines of a server's log, and those of OpenAI's batch files, have a request's body.
_BODIES = ("body", "request", "request_body")


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        origin: Where it comes from, for errors: a file and line, or a position in a list.
        content: Its text or its conversation; None if it holds neither, or only blanks.
        fields: The complete row; empty for a bare text or conversation.
    """

    origin: str
    content: str | tuple[Message, ...] | None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def text(self, tokenizer: Any = None, *, generation_prompt: bool = False) -> str:
        """Return the row as one text; a conversation as `render` writes it.

        Args:
            tokenizer: Its chat template writes the conversation.
            generation_prompt: End a conversation with the opening of an answer.

        Raises:
            DataError: The chat template refuses the conversation.
        """
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return render(self.content, tokenizer, self.origin, generation_prompt=generation_prompt)


def read_rows(
    source: Source,
    *,
    field: str = "text",
    split: str = "train",
    lines: bool = False,
    all_columns: bool = True,
) -> Iterator[Row]:
    """Stream the rows of a source, empty ones included.

    Args:
        source: A file (``.txt``, ``.jsonl``, ``.json``, ``.parquet``; all but the last also ``.gz``), the
            name of a Hugging Face data set (``name`` or ``name:config``), or the rows themselves: any
            iterable of texts, of mappings or of conversations, or a data frame.
        field: The field that holds the text or the conversation. Where a row has no ``text``, its
            ``messages``, ``conversations`` or ``prompt`` are taken: also those of a request's body in a field
            ``body``, ``request`` or ``request_body``. A list of prompts is as many rows.
        split: The part of a Hugging Face data set.
        lines: Each line of a ``.txt`` file (or one whose suffix says nothing) is a row, without its line
            end; else the file comes in pieces of about 16,000 characters, cut at line ends. Blank ones are
            left out.
        all_columns: Read all columns of a parquet file for `Row.fields`, not only those for the content.

    Raises:
        DataError: The source is missing or of another kind, or a row cannot be read; the text names the row.
            A missing source raises at once, the others while iterating.
        MissingDependency: The source needs pyarrow or datasets, which are not installed.
    """
    columns = None if all_columns else (*_names(field), *(_BODIES if field in _DEFAULTS else ()))
    located = open_source(source, split=split, lines=lines, columns=columns)
    return (row for origin, value in located for row in _rows(origin, value, field))


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Let errors about a source begin with the name of the argument that it was given as, not ``texts``."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{argument}: {str(error).removeprefix('texts: ')}") from error


def _rows(origin: str, value: Any, name: str) -> Iterator[Row]:
    """Yield what one value of a source holds: one row, or the prompts of one request."""
    if not isinstance(value, Mapping):
        yield Row(origin, _content(value, origin, "or a row"))
        return
    field, chosen = _chosen(value, name, origin)
    prompts = chosen if field == "prompt" and _is_batch(chosen) else [chosen]
    for number, one in enumerate(prompts):
        where = origin if len(prompts) == 1 else f"{origin} prompt {number}"
        yield Row(where, _content(one, where, f"in field {name!r}"), value)


def _names(field: str) -> tuple[str, ...]:
    """Return the fields to look at, in their order: where the default one is absent, those of a request."""
    return tuple(dict.fromkeys((field, *CONVERSATIONS, "prompt"))) if field in _DEFAULTS else (field,)


def _is_batch(value: Any) -> bool:
    """Whether a value is the prompts of one request: OpenAI's completions take several in one list."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, str | None) for one in value)


def _request_in(row: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the request's body, if a line of a log has it in a field of its own; else the row itself."""
    if any(name in row for name in names):
        return row
    bodies = (row.get(name) for name in _BODIES)
    return next((one for one in bodies if isinstance(one, Mapping) and {*names} & {*one}), row)


def _chosen(row: Mapping[str, Any], name: str, origin: str) -> tuple[str, Any]:
    """Return the first field to look at that is there and not null, and its value."""
    if name in _DEFAULTS:
        row = _request_in(row, _names(name))
    present = [one for one in _names(name) if one in row]
    if not present:
        bare = "role" in row or "from" in row
        hint = "; put the messages of a conversation into a list of their own" if bare else ""
        hint = hint or "; choose one with field"
        has = name_some(row) or "none"
        raise DataError(f"texts: {origin} has no field {name!r}; it has {has}{hint}")
    return next(((one, row[one]) for one in present if not _is_null(row[one])), (name, None))


def _content(value: Any, origin: str, where: str) -> str | tuple[Message, ...] | None:
    if _is_null(value):
        return None
    if isinstance(value, str):
        return _checked(value, origin) if value.strip() else None
    if isinstance(value, bytes | bytearray):
        raise DataError(f"texts: {origin}: expected a string, got bytes; decode them first")
    if isinstance(value, list) and any(isinstance(one, int) for one in (*value, *_first(value))):
        raise DataError(f"texts: {origin}: expected a text, got token ids; log the prompt as text")
    if not isinstance(value, Mapping) and hasattr(value, "__iter__"):
        messages = messages_of(value, origin)
        for message in messages:
            _checked(message["content"], origin)
        return None if says_nothing(messages) else messages
    kind = type(value).__name__
    raise DataError(f"texts: {origin}: expected a string {where} (or a list of messages), got {kind}")


def _first(values: list[Any]) -> list[Any]:
    """Return the first of the lists in a list, if it begins with one."""
    return values[0] if values and isinstance(values[0], list) else []


def _is_null(value: Any) -> bool:
    # Data frames mark a missing value by NaN or by a value of their own.
    return value is None or (isinstance(value, float) and value != value) or type(value).__name__ == "NAType"


def _checked(text: str, origin: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise DataError(
            f"texts: {origin}: contains an unpaired surrogate ({code}) at position {error.start}; "
            "remove it first"
        ) from error
    return text
