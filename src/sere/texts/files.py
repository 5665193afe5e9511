"""Read files of texts: plain, JSON in its two forms, parquet."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from sere.errors import DataError, MissingDependency, how_to_install, name_some

# A long text file is cut at line ends into documents of about this many characters, so that it can be
# shuffled and is never in memory completely.
_PIECE = 16_384
_LINES = (".jsonl", ".ndjson")
_COLUMNS = (".csv", ".tsv")  # not read: their lines are not texts

KINDS = (".txt", ".jsonl", ".json", ".parquet")
"""The kinds of files, as errors name them."""

Located = Iterator[tuple[str, Any]]
"""Pairs of origin (file and line, for errors) and value."""


def open_file(path: Path, *, lines: bool, columns: tuple[str, ...] | None) -> Located:
    """Read a file by its suffix, in upper or lower case.

    Args:
        path: The file, compressed if it ends in ``.gz``; a byte order mark and any line ends are fine.
        lines: Whether each line of a file is a value, where the suffix names none of the other kinds.
        columns: The columns of a parquet file that are wanted, those that there are; None for all.

    Raises:
        DataError: The suffix is another; while iterating: what is in the file cannot be read.
        MissingDependency: A parquet file, and pyarrow is not installed.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = suffixes[-1:] == [".gz"]
    suffix = next(iter(suffixes[-2:-1] if packed else suffixes[-1:]), "")
    if suffix == ".parquet" and not packed:
        return _parquet(path, columns)
    if lines and suffix not in (".json", *_LINES, *_COLUMNS):
        return _prompts(path)
    reader = _READERS.get(suffix)
    if reader is None:
        found = "".join(path.suffixes[-2:] if packed else path.suffixes[-1:])
        raise DataError(
            f"texts: {path} ends in {found!r}; expected one of {', '.join(KINDS)}, or one of the first three "
            "followed by .gz. Plain text of another name: copy it to a .txt file"
        )
    return reader(path)


def _lines(path: Path, limit: int = _PIECE) -> Iterator[str]:
    """Yield the lines of a UTF-8 file; one longer than ``limit`` in parts; -1 for no limit."""
    try:
        with _stream(path) as stream:
            while line := stream.readline(limit):
                if "\0" in line:
                    raise DataError(f"texts: {path} is a binary file (it has null bytes); expected text")
                yield line
    except UnicodeDecodeError as error:
        raise DataError(
            f"texts: {path} is not UTF-8 ({error.reason}); expected text, convert it to UTF-8 first"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"texts: {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def _stream(path: Path) -> IO[str]:
    # With -sig, a byte order mark at the start is not part of the text.
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _pieces(path: Path) -> Located:
    piece: list[str] = []
    length = number = 0
    for line in _lines(path):
        piece.append(line)
        length += len(line)
        if length >= _PIECE:
            yield from _unless_blank(f"{path} piece {number}", "".join(piece))
            piece, length, number = [], 0, number + 1
    yield from _unless_blank(f"{path} piece {number}", "".join(piece))


def _prompts(path: Path) -> Located:
    for number, line in enumerate(_lines(path, limit=-1), start=1):
        yield from _unless_blank(f"{path} line {number}", line.rstrip("\n"))


def _unless_blank(origin: str, text: str) -> Located:
    if text.strip():
        yield origin, text


def _json_lines(path: Path) -> Located:
    yield from _objects(path, _lines(path, limit=-1), "expected one object per line")


def _objects(path: Path, lines: Iterable[str], expected: str) -> Located:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            origin = f"{path} line {number}"
            yield _object(origin, _parse(line, origin, expected))


def _json(path: Path) -> Located:
    """Read a ``.json`` file: an array of rows, or (also common) one object per line."""
    lines = _lines(path, limit=-1)  # once: a pipe cannot be read twice
    begin: list[str] = []
    for line in lines:
        begin.append(line)
        if line.strip():
            break
    if not "".join(begin).lstrip().startswith("["):
        yield from _objects(path, chain(begin, lines), "expected an array of rows, or one object per line")
        return
    rows = _parse("".join((*begin, *lines)), str(path), "expected an array of rows")
    for number, row in enumerate(rows):
        yield _object(f"{path} row {number}", row)


def _parse(text: str, origin: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"texts: {origin} is not JSON ({error}); {expected}") from error


def _object(origin: str, value: Any) -> tuple[str, Any]:
    if value is not None and not isinstance(value, dict | str | list):
        raise DataError(f"texts: {origin}: expected an object, got {type(value).__name__}")
    return origin, value


_READERS: dict[str, Callable[[Path], Located]] = {
    ".txt": _pieces, ".json": _json, **dict.fromkeys(_LINES, _json_lines),
}  # fmt: skip


def _parquet(path: Path, wanted: tuple[str, ...] | None) -> Located:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependency(f"parquet files need pyarrow: {how_to_install('data')}") from error
    try:
        with pq.ParquetFile(path) as table:
            columns = table.schema_arrow.names
            chosen = columns if wanted is None else [name for name in columns if name in wanted]
            if wanted is not None and not chosen:
                raise DataError(f"texts: {path} has no column {wanted[0]!r}; it has {name_some(columns)}")
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=chosen):
                for value in batch.to_pylist():
                    yield f"{path} row {row}", value
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"texts: {path} cannot be read as parquet: {error}") from error
