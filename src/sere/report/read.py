"""Files become records: JSON, JSON lines and similarity tables, of all formats that sere ever wrote."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sere.errors import DataError, name_some
from sere.files import what_is_there
from sere.report.former import modernize
from sere.table import SimilarityTable

# What a report shows, and the newest version of each format that this release reads.
NEWEST = {
    "sere-eval": 2,
    "sere-lm-eval": 1,
    "sere-tune": 1,
    "sere-demo": 3,
    "sere-bench": 4,
    "sere-bench-serve": 4,
    "sere-bench-serve-online": 2,
}
_TABLE_SUFFIXES = (".sere", ".safetensors")


@dataclass(frozen=True, slots=True)
class Source:
    """One record, or one table, and the file that it is from.

    Attributes:
        name: The file, as it is shown; with the line, if it has several records.
        kind: A key of ``NEWEST``, or ``"table"``.
        record: The record with today's names; empty for a table.
        table: The table, or None.
    """

    name: str
    kind: str
    record: Mapping[str, Any]
    table: SimilarityTable | None = None


def read_sources(paths: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """Read records and tables.

    Args:
        paths: Files with a record in JSON, with one record on each line, or with a similarity table.

    Raises:
        DataError: A file is missing, holds no JSON, or holds something else than records that can be shown.
        TableError: A table is damaged.
    """
    return [source for path in paths for source in _read(Path(path))]


def source_of(record: Mapping[str, Any], name: str) -> Source:
    """Return a record that was just made, or read, as a source.

    Args:
        record: JSON-ready.
        name: What it is called in the report and in errors.

    Raises:
        DataError: It is none that can be shown, or one of a newer release.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{name}: expected a record, a JSON object, got {type(record).__name__}")
    found = re.fullmatch(r"(.+)-(\d+)", str(record.get("format", "")))
    kind, version = (found[1], int(found[2])) if found else ("", 0)
    if kind not in NEWEST:
        raise DataError(
            f"{name}: expected a record of sere eval, lm-eval, tune, bench, bench serve or demo, its format "
            f"one of {name_some(sorted(NEWEST))}, got format {record.get('format')!r}; leave the file out"
        )
    if version > NEWEST[kind]:
        raise DataError(
            f"{name}: expected format {kind}-{NEWEST[kind]} or older, got {kind}-{version}, which a newer "
            "sere wrote; make the report with that one"
        )
    return Source(name, kind, modernize(record))


def _read(path: Path) -> Iterator[Source]:
    if path.suffix in _TABLE_SUFFIXES:
        yield Source(path.name, "table", {}, SimilarityTable.load(path))
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected a record in JSON, or a table with a name that ends in .sere, got a file that "
            "is not text"
        ) from error
    except OSError as error:
        what = what_is_there(path) if not path.is_file() else f"cannot be read: {error.strerror}"
        raise DataError(f"{path}: expected a file with records, but it {what}") from error
    try:
        yield source_of(json.loads(text), path.name)
    except json.JSONDecodeError as error:
        yield from _lines(path, text, error)


def _lines(path: Path, text: str, error: json.JSONDecodeError) -> Iterator[Source]:
    """Yield the records of JSON lines.

    Raises:
        DataError: A line is no record; of a file that is not JSON lines, what its JSON lacks.
    """
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: expected records in JSON, got an empty file")
    for number, line in lines:
        name = f"{path.name}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as wrong:
            where = f"line {number}: {wrong.msg}" if number > 1 else f"line {error.lineno}: {error.msg}"
            raise DataError(
                f"{path}: expected a record in JSON or one on each line, got something else in {where}; was "
                "the file cut off?"
            ) from wrong
        yield source_of(record, name)
