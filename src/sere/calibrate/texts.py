"""Calibration texts: from a file, a list or a data set name to a stream of documents."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sere.errors import DataError, MissingDependency

SUFFIXES = (".txt", ".jsonl", ".parquet")
# Names that end so are meant as files, and taken for a data set's name only by mistake.
_FILE_LIKE = (*SUFFIXES, ".csv", ".tsv", ".json", ".md", ".gz", ".zip", ".zst")
# A long text file is cut at line ends into documents of about this many characters, so that it can be
# shuffled and never has to be in memory whole.
_PIECE = 16_384
_SHUFFLE_BUFFER = 1_000

Source = str | os.PathLike[str] | Iterable[str]


def load_texts(
    source: Source, *, field: str = "text", split: str = "train", seed: int | None = None
) -> Iterator[str]:
    """Stream the documents of a source.

    Args:
        source: A ``.txt``, ``.jsonl`` or ``.parquet`` file, the name of a Hugging Face data set (``name`` or
            ``name:config``), or the documents themselves.
        field: The field of a jsonl object, the column of a parquet file or data set that holds the text.
        split: The part of a Hugging Face data set.
        seed: Shuffle through a buffer of 1,000 documents with this seed; None keeps the source's order.

    Returns:
        An iterator over the documents that are not blank. A ``.txt`` file comes in pieces of about 16,000
        characters, cut at line ends.

    Raises:
        DataError: The file is missing or of another kind, the field is missing or holds no text, a line
            is not JSON (its number is given), or there is no document. A missing source raises at once,
            the others while iterating, when the bad place is reached.
        MissingDependency: The source needs pyarrow or datasets, which are not installed.
    """
    documents = _open(source, field, split)
    return _not_empty(documents if seed is None else shuffled(documents, seed), source)


def shuffled(documents: Iterable[str], seed: int, buffer: int = _SHUFFLE_BUFFER) -> Iterator[str]:
    """Yield documents in a seeded order; at most ``buffer`` of them are held at a time."""
    draw = random.Random(seed)
    held: list[str] = []
    for document in documents:
        if len(held) < buffer:
            held.append(document)
            continue
        place = draw.randrange(buffer)
        yield held[place]
        held[place] = document
    draw.shuffle(held)
    yield from held


def _open(source: Source, field: str, split: str) -> Iterator[str]:
    if not isinstance(source, str | os.PathLike):
        return _strings(source)
    path = Path(source)
    if path.is_dir():
        raise DataError(f"texts: {path} is a folder; expected a {', '.join(SUFFIXES)} file")
    if path.is_file():
        return _read_file(path, field)
    if path.suffix in _FILE_LIKE or path.is_absolute() or not isinstance(source, str):
        raise DataError(f"texts: no file {path}; give a {', '.join(SUFFIXES)} file or a data set's name")
    return _read_data_set(source, field, split)


def _not_empty(documents: Iterator[str], source: Source) -> Iterator[str]:
    seen = False
    for document in documents:
        if document.strip():
            seen = True
            yield document
    if not seen:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the list"
        raise DataError(f"texts: {name} holds no text; expected at least one document that is not blank")


def _strings(documents: Iterable[str]) -> Iterator[str]:
    for number, document in enumerate(documents):
        if not isinstance(document, str):
            raise DataError(f"texts: expected strings, got {type(document).__name__} at position {number}")
        yield document


def _read_file(path: Path, field: str) -> Iterator[str]:
    if path.suffix == ".txt":
        return _read_txt(path)
    if path.suffix == ".jsonl":
        return _read_jsonl(path, field)
    if path.suffix == ".parquet":
        return _read_parquet(path, field)
    raise DataError(f"texts: {path} ends in {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")


def _read_txt(path: Path) -> Iterator[str]:
    piece: list[str] = []
    length = 0
    for line in _lines(path):
        piece.append(line)
        length += len(line)
        if length >= _PIECE:
            yield "".join(piece)
            piece, length = [], 0
    yield "".join(piece)


def _lines(path: Path, limit: int = _PIECE) -> Iterator[str]:
    """Lines of a UTF-8 file; one longer than ``limit`` comes in parts, -1 for no limit."""
    with path.open(encoding="utf-8") as stream:
        try:
            while line := stream.readline(limit):
                yield line
        except UnicodeDecodeError as error:
            raise DataError(f"texts: {path} is not UTF-8 ({error.reason}); convert it first") from error


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path, limit=-1), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"texts: {path} line {number} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"texts: {path} line {number}: expected an object, got {type(value).__name__}")
        yield _text_of(value, field, f"{path} line {number}")


def _text_of(value: dict[str, Any], field: str, place: str) -> str:
    if field not in value:
        raise DataError(f"texts: {place} has no field {field!r}; it has {', '.join(value) or 'none'}")
    if not isinstance(value[field], str):
        kind = type(value[field]).__name__
        raise DataError(f"texts: {place}: expected a string in field {field!r}, got {kind}")
    return str(value[field])


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependency("parquet files need pyarrow: pip install 'sere[data]'") from error
    try:
        with pq.ParquetFile(path) as table:
            columns = table.schema_arrow.names
            if field not in columns:
                raise DataError(f"texts: {path} has no column {field!r}; it has {', '.join(columns)}")
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for value in batch.column(0).to_pylist():
                    yield _text_of({field: value}, field, f"{path} row {row}")
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"texts: {path} cannot be read as parquet: {error}") from error


def _read_data_set(source: str, field: str, split: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency(
            f"texts: {source!r} is not a file here; to read it as a Hugging Face data set: "
            "pip install 'sere[datasets]'"
        ) from error
    name, _, config = source.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split, streaming=True)
    except Exception as error:  # the library raises a dozen kinds, down to plain ValueError
        raise DataError(f"texts: no file and no data set {source!r} (split {split!r}): {error}") from error
    return (_text_of(row, field, f"data set {source} row {number}") for number, row in enumerate(rows))
