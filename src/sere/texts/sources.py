"""Open a source (a file, a data set's name, or rows in memory) as pairs of origin and value."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sere.errors import DataError, MissingDependency, how_to_install, name_some
from sere.texts.files import KINDS, Located, open_file

Source = str | os.PathLike[str] | Iterable[Any]
"""A file, a data set's name, or the rows: texts, mappings, conversations, a data frame."""

CONVERSATIONS = ("messages", "conversations", "conversation")
"""Fields that hold a conversation."""

# Names with these endings are meant as files, never as a data set.
_FILE_LIKE = (".txt", ".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".md", ".gz", ".zip", ".zst",
              ".bz2", ".xz")  # fmt: skip
_DATA_SET = re.compile(r"[\w.-]+(/[\w.-]+)?(:[^\n]+)?")
_LONGEST = 200
_SHOWN = 40


def open_source(source: Source, *, split: str, lines: bool, columns: tuple[str, ...] | None) -> Located:
    """Open a source; see `sere.texts.rows.read_rows`.

    Args:
        source: What to read.
        split: The part of a data set.
        lines: Whether each line of a ``.txt`` file is a value.
        columns: The columns of a parquet file that are wanted, those that there are; None for all.

    Raises:
        DataError: The source is missing or of another kind.
        MissingDependency: A package is needed to read it.
    """
    if isinstance(source, str | os.PathLike):
        return _named(source, split, lines, columns)
    if isinstance(source, bytes | bytearray | memoryview):
        raise DataError(f"texts: expected strings, got {type(source).__name__}; decode them and give a list")
    if isinstance(source, Mapping):
        return _of_mapping(source, split)
    return ((f"position {number}", value) for number, value in enumerate(_values(source)))


def describe_source(source: Source) -> str:
    """Return what to call a source in an error."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return "the list" if isinstance(source, list | tuple) else f"the {type(source).__name__}"


def _named(
    source: str | os.PathLike[str], split: str, lines: bool, columns: tuple[str, ...] | None
) -> Located:
    name = os.fspath(source)
    if not isinstance(name, str):
        raise DataError("texts: expected a path as a string, got bytes")
    path = Path(name)
    try:
        folder, file = bool(name) and path.is_dir(), path.exists()
    except (OSError, ValueError):  # too long for a name, or with a null character
        folder = file = False
    if folder:
        raise DataError(f"texts: {path} is a folder; expected a {', '.join(KINDS)} file")
    if file and name:
        if split != "train":
            raise DataError(
                f"texts: split: only a data set has splits, got {split!r} for the file {path}; leave it out"
            )
        return open_file(path, lines=lines, columns=columns)
    if isinstance(source, str) and _could_be_a_data_set(name):
        return _data_set(source, split)
    if not isinstance(source, str):
        raise DataError(f"texts: no file {path}; give a {', '.join(KINDS)} file")
    raise DataError(
        f"texts: no file {_short(name)}; give a {', '.join(KINDS)} file, a data set's name, or the documents "
        "themselves as a list"
    )


def _could_be_a_data_set(name: str) -> bool:
    return not (
        Path(name).suffix.lower() in _FILE_LIKE
        or name.startswith(("/", ".", "~"))
        or len(name) > _LONGEST
        or _DATA_SET.fullmatch(name) is None
    )


def _short(text: str) -> str:
    """Return a name as it is, but what is empty, long or has line breaks (a text) in quotes and cut."""
    if text.isprintable() and text and len(text) <= _LONGEST:
        return text
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _of_mapping(source: Mapping[str, Any], split: str) -> Located:
    """Open one split of a data set that was loaded with all of them; nothing else is a mapping."""
    part = source.get(split)
    if part is None or isinstance(part, str | bytes | Mapping | list | tuple):
        raise DataError(
            f"texts: expected a list of rows, got a {type(source).__name__} with "
            f"{name_some(source) or 'nothing'}; put a single row into a list, or choose one split"
        )
    return open_source(part, split=split, lines=False, columns=None)


def _values(source: Any) -> Iterable[Any]:
    """Return the rows of a data frame (by what pandas, polars and Arrow tables can do) or of an iterable."""
    if hasattr(source, "itertuples"):
        names = list(source.columns)
        return (dict(zip(names, row, strict=True)) for row in source.itertuples(index=False, name=None))
    if hasattr(source, "iter_rows"):
        rows: Iterable[Any] = source.iter_rows(named=True)
        return rows
    if hasattr(source, "to_pylist"):
        batches = source.to_batches() if hasattr(source, "to_batches") else [source]
        return (row for batch in batches for row in batch.to_pylist())
    if not isinstance(source, Iterable):
        raise DataError(f"texts: expected a file, a data set's name or a list, got {type(source).__name__}")
    return source


def _data_set(source: str, split: str) -> Located:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency(
            f"texts: {source!r} is not a file here; to read it as a Hugging Face data set, "
            f"{how_to_install('datasets')}; a text itself goes into a list: [text, ...]"
        ) from error
    name, _, config = source.partition(":")
    # Releases before 4 ask on the terminal whether to run a data set's script; later ones run none.
    may_ask = "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters
    options: dict[str, Any] = {"trust_remote_code": False} if may_ask else {}
    try:
        rows = datasets.load_dataset(name, config or None, split=split, streaming=True, **options)
    except Exception as error:  # the library raises a dozen kinds, down to plain ValueError
        raise DataError(f"texts: no file and no data set {source!r} (split {split!r}): {error}") from error
    return ((f"data set {source} row {number}", row) for number, row in enumerate(rows))
