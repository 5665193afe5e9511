"""What one row of a source holds: a text or a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sere.errors import DataError, name_some
from sere.texts.chat import Message, messages_of, render, says_nothing
from sere.texts.sources import CONVERSATIONS, Source, open_source


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        place: Where it comes from, for errors: a file and line, or a position.
        content: Its text or its conversation; None where it holds neither, or only blanks.
        fields: The whole row as it came; empty for a bare text or conversation.
    """

    place: str
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
        return render(self.content, tokenizer, self.place, generation_prompt=generation_prompt)


def read_rows(
    source: Source, *, field: str = "text", split: str = "train", lines: bool = False, whole: bool = True
) -> Iterator[Row]:
    """Stream the rows of a source, empty ones included.

    Args:
        source: A file (``.txt``, ``.jsonl``, ``.json``, ``.parquet``; all but the last also ``.gz``), the
            name of a Hugging Face data set (``name`` or ``name:config``), or the rows themselves: any
            iterable of texts, of mappings or of conversations, or a data frame.
        field: The field that holds the text or the conversation. Where a row has no ``text``, its
            ``messages`` or ``conversations`` are taken.
        split: The part of a Hugging Face data set.
        lines: Each line of a ``.txt`` file (or one whose suffix says nothing) is a row, without its line
            end; else the file comes in pieces of about 16,000 characters, cut at line ends. Blank ones are
            left out.
        whole: Read all columns of a parquet file for `Row.fields`, not only those needed for the content.

    Raises:
        DataError: The source is missing or of another kind, or a row cannot be read; the text names the row.
            A missing source raises at once, the others while iterating, when the bad place is reached.
        MissingDependency: The source needs pyarrow or datasets, which are not installed.
    """
    columns = None if whole else _names(field)
    places = open_source(source, split=split, lines=lines, columns=columns)
    return (_row(place, value, field) for place, value in places)


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Let errors about a source begin with the name of the argument that it was given as, not ``texts``."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{argument}: {str(error).removeprefix('texts: ')}") from error


def _row(place: str, value: Any, name: str) -> Row:
    if isinstance(value, Mapping):
        return Row(place, _content(_chosen(value, name, place), place, f"in field {name!r}"), value)
    return Row(place, _content(value, place, "or a row"))


def _names(field: str) -> tuple[str, ...]:
    """Return the fields to look at, in their order: where the default one is absent, a conversation's."""
    return (field, *CONVERSATIONS) if field in ("text", "prompt") else (field,)


def _chosen(row: Mapping[str, Any], name: str, place: str) -> Any:
    """Return the value of the first field to look at that is there and not null."""
    present = [one for one in _names(name) if one in row]
    if not present:
        bare = "role" in row or "from" in row
        hint = "; put the messages of a conversation into a list of their own" if bare else ""
        hint = hint or "; choose one with field"
        has = name_some(row) or "none"
        raise DataError(f"texts: {place} has no field {name!r}; it has {has}{hint}")
    return next((row[one] for one in present if not _is_null(row[one])), None)


def _content(value: Any, place: str, where: str) -> str | tuple[Message, ...] | None:
    if _is_null(value):
        return None
    if isinstance(value, str):
        return _checked(value, place) if value.strip() else None
    if isinstance(value, bytes | bytearray):
        raise DataError(f"texts: {place}: expected a string, got bytes; decode them first")
    if not isinstance(value, Mapping) and hasattr(value, "__iter__"):
        messages = messages_of(value, place)
        for message in messages:
            _checked(message["content"], place)
        return None if says_nothing(messages) else messages
    kind = type(value).__name__
    raise DataError(f"texts: {place}: expected a string {where} (or a list of messages), got {kind}")


def _is_null(value: Any) -> bool:
    # Data frames have a NaN or a value of their own where nothing is.
    return value is None or (isinstance(value, float) and value != value) or type(value).__name__ == "NAType"


def _checked(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise DataError(
            f"texts: {place}: holds half a character ({code}) at position {error.start}; remove it first"
        ) from error
    return text
