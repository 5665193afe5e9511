"""Documents for calibration: the texts of a source's rows, shuffled, with a count of the empty rows."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

from sere.errors import DataError
from sere.texts.rows import Row, read_rows
from sere.texts.sources import Source, describe_source

_SHUFFLE_BUFFER = 1_000


class Texts(Iterator[str]):
    """A stream of documents that are not blank.

    Attributes:
        rows: Rows read so far.
        skipped: Of them, rows that hold no text: null or blank.
    """

    def __init__(self, rows: Iterator[Row], name: str, seed: int | None, tokenizer: Any) -> None:
        """Read ``rows`` of the source ``name``; see `load_texts`."""
        self.rows = self.skipped = 0
        found = self._found(rows, name, tokenizer)
        self._stream = found if seed is None else shuffled(found, seed)

    def __next__(self) -> str:
        return next(self._stream)

    def _found(self, rows: Iterator[Row], name: str, tokenizer: Any) -> Iterator[str]:
        for row in rows:
            self.rows += 1
            if row.content is None:
                self.skipped += 1
                continue
            yield row.text(tokenizer)
        if self.skipped == self.rows:
            why = f"all {self.rows} rows are null or blank" if self.rows else "it is empty"
            raise DataError(
                f"texts: {name} holds no text ({why}); expected at least one document that is not blank"
            )


def load_texts(
    source: Source,
    *,
    field: str = "text",
    split: str = "train",
    seed: int | None = None,
    tokenizer: Any = None,
) -> Texts:
    """Stream the documents of a source.

    Args:
        source: A ``.txt``, ``.jsonl``, ``.json`` or ``.parquet`` file (all but the last also with ``.gz``),
            the name of a Hugging Face data set (``name`` or ``name:config``), or the rows themselves: texts,
            mappings, conversations, a data frame.
        field: The field or column that holds the text or a conversation. Where a row has no ``text``, its
            ``messages``, ``conversations`` or ``prompt`` are taken, also of a logged request's ``body``:
            messages with ``role`` and ``content``, or with ``from`` and ``value``.
        split: The part of a Hugging Face data set.
        seed: Shuffle through a buffer of 1,000 documents with this seed; None keeps the source's order.
        tokenizer: Its chat template writes conversations; without one each message is ``role: content``, with
            a blank line between messages.

    Returns:
        An iterator over the documents. A conversation written by a template is a `ChatText`. A ``.txt`` file
        comes in pieces of about 16,000 characters, cut at line ends. Rows that hold no text are skipped and
        counted in its ``skipped``.

    Raises:
        DataError: The source is missing or of another kind, the field is missing or holds no text, a line
            is not JSON (its number is given), or there is no document. A missing source raises at once,
            the others while iterating.
        MissingDependency: The source needs pyarrow or datasets, which are not installed.
    """
    rows = read_rows(source, field=field, split=split, all_columns=False)
    return Texts(rows, describe_source(source), seed, tokenizer)


def shuffled(documents: Iterable[str], seed: int, buffer: int = _SHUFFLE_BUFFER) -> Iterator[str]:
    """Yield documents in a seeded order; at most ``buffer`` of them are held at a time."""
    draw = random.Random(seed)
    held: list[str] = []
    for document in documents:
        if len(held) < buffer:
            held.append(document)
            continue
        index = draw.randrange(buffer)
        yield held[index]
        held[index] = document
    draw.shuffle(held)
    yield from held
