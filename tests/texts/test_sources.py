"""What people give as texts: files of all kinds, lists, data frames, and things that are no texts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sere.errors import DataError
from sere.texts import load_texts, read_rows

ROWS = [{"text": "one"}, {"text": "two"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES.encode()),
        ("a.JSONL", LINES.encode()),
        ("a.ndjson", LINES.encode()),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("a.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("a.jsonl", b'"one"\n"two"\n'),
        ("a.json", json.dumps(ROWS, indent=2).encode()),
        ("a.json", b'\xef\xbb\xbf["one", {"text": "two"}]'),
        ("a.JSON", LINES.encode()),
        ("a.jsonl.gz", gzip.compress(LINES.encode())),
        ("b.v2.json.GZ", gzip.compress(json.dumps(ROWS).encode())),
    ],
    ids=[
        "lines",
        "upper case",
        "ndjson",
        "byte order mark",
        "CRLF",
        "strings",
        "array",
        "array of both",
        "lines named json",
        "compressed lines",
        "compressed array",
    ],
)
def test_json_in_all_its_forms(tmp_path: Path, name: str, data: bytes) -> None:
    """Lines or an array, upper-case suffixes, a byte order mark, Windows line ends, compressed."""
    (tmp_path / name).write_bytes(data)
    assert list(load_texts(tmp_path / name)) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.TXT", b"one\ntwo\n"),
        ("a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n"),
        ("a.txt.gz", gzip.compress(b"one\ntwo\n")),
    ],
    ids=["upper case", "byte order mark and CRLF", "compressed"],
)
def test_plain_text_in_all_its_forms(tmp_path: Path, name: str, data: bytes) -> None:
    """The byte order mark is no part of the text, and line ends are one character."""
    (tmp_path / name).write_bytes(data)
    assert list(load_texts(tmp_path / name)) == ["one\ntwo\n"]


def test_parquet_with_an_upper_case_suffix(tmp_path: Path) -> None:
    """The suffix counts, not its case."""
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one", None, "two"]}), tmp_path / "A.PARQUET")
    texts = load_texts(tmp_path / "A.PARQUET")
    assert list(texts) == ["one", "two"]
    assert (texts.rows, texts.skipped) == (3, 1)


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.json", b'{\n"text": "one"\n}', r"a\.json line 1 is not JSON"),
        ("a.json", b"[1]", r"a\.json row 0: expected an object, got int"),
        ("a.json", b"[{]", r"a\.json is not JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl line 1 is not JSON"),
        ("a.jsonl.zst", b"x", r"ends in '\.zst'; expected one of"),
        ("a.parquet.gz", b"x", r"ends in '\.parquet\.gz'; expected one of"),
        ("a", b"x", r"ends in ''; expected one of"),
        ("a.txt", b"a\0b", r"a\.txt is a binary file"),
        ("a.txt", b"\x89PNG", r"a\.txt is not UTF-8 .*expected text, convert it to UTF-8"),
        ("a.txt", "é".encode("utf-16"), r"a\.txt is not UTF-8"),
        ("a.txt.gz", b"not compressed", r"a\.txt\.gz cannot be read: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"one" * 9999)[:40], r"a\.txt\.gz cannot be read: Compressed file ended"),
    ],
    ids=[
        "an object over lines",
        "a number",
        "damaged",
        "too deep",
        "zst",
        "compressed parquet",
        "no suffix",
        "a null character",
        "an image",
        "UTF-16",
        "not compressed",
        "cut short",
    ],
)
def test_files_that_are_something_else_are_named(tmp_path: Path, name: str, data: bytes, text: str) -> None:
    """A wrong, damaged or binary file is one error with its name."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=text):
        list(load_texts(tmp_path / name))


@pytest.mark.parametrize(
    "text",
    [
        "A long text that somebody took for a list. " * 50,
        "first line\nsecond line",
        "a short text",
        "with a null \0 character",
        "Read the README.md",
        "",
    ],
    ids=["long", "two lines", "short", "a null character", "with a suffix", "empty"],
)
def test_a_text_in_place_of_a_list_is_named(text: str) -> None:
    """A text itself is no file; the error says to give a list."""
    with pytest.raises(
        DataError, match=r"no file .*give a .*or the documents themselves as a list"
    ) as caught:
        load_texts(text)
    assert len(str(caught.value)) < 200


class _Frame:
    """A data frame as pandas has it."""

    columns = ("id", "text")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def itertuples(self, *, index: bool, name: None) -> Iterator[tuple[object, ...]]:
        assert not index
        return iter([(1, "one"), (2, float("nan")), (3, "two")])


class _Polars:
    """A data frame as polars has it."""

    def iter_rows(self, *, named: bool) -> Iterator[dict[str, Any]]:
        assert named
        return iter(ROWS)


class _DataSet:
    """A data set as datasets has it: rows are mappings."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(ROWS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (row["text"] for row in ROWS),
        lambda: ROWS,
        lambda: ("one", {"text": "two"}),
        lambda: ["one", None, "two"],
        lambda: _Frame(),
        lambda: _Polars(),
        lambda: _DataSet(),
        lambda: {"train": _DataSet(), "test": ()},
        lambda: pa.table({"text": ["one", "two"]}),
        lambda: pa.array(["one", "two"]),
        lambda: pa.RecordBatch.from_pylist(ROWS),
    ],
)
def test_rows_in_memory(make: Callable[[], Any]) -> None:
    """Generators, lists of texts or rows, data frames, data sets and their splits, Arrow tables."""
    assert list(load_texts(make())) == ["one", "two"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (b"one", "expected strings, got bytes; decode them"),
        ([b"one"], "position 0: expected a string, got bytes; decode them"),
        ({"text": "one"}, "expected a list of rows, got a dict with text; put a single row into a list"),
        ({}, "a dict with nothing"),
        (5, "expected a file, a data set's name or a list, got int"),
        ([Path("a.txt")], "position 0: expected a string or a row.*Path"),
        (["a", ["b"]], "position 1 message 0: expected an object, got str"),
        (iter([]), "holds no text .it is empty"),
        ([None, " "], "the list holds no text .all 2 rows are null or blank"),
    ],
)
def test_what_is_no_text_is_named(source: Any, text: str) -> None:
    """Bytes, a single row, a number, paths in a list: one error that says what to give."""
    with pytest.raises(DataError, match=text):
        list(load_texts(source))


def test_empty_rows_are_skipped_and_counted() -> None:
    """Null, blank and speechless rows are no documents; how many there were is known at the end."""
    rows = [
        "one",
        None,
        "  ",
        {"text": None},
        {"messages": []},
        {"messages": [{"role": "user", "content": ""}]},
    ]
    texts = load_texts(rows, seed=0)
    assert list(texts) == ["one"]
    assert (texts.rows, texts.skipped) == (6, 5)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts", "prompts.md"])
def test_lines_of_a_file_are_rows_where_asked_for(tmp_path: Path, name: str) -> None:
    """A file of prompts: one per line, whatever its suffix, without line ends and blank lines."""
    (tmp_path / name).write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \r\n")
    assert [row.content for row in read_rows(tmp_path / name, lines=True)] == ["one", " two "]


def test_rows_of_json_stay_rows_where_lines_are_asked_for(tmp_path: Path) -> None:
    """The suffix says what the file holds."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}', encoding="utf-8")
    assert [row.content for row in read_rows(tmp_path / "p.jsonl", field="prompt", lines=True)] == ["one"]


def test_a_file_that_is_not_allowed_to_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system says about a file becomes our error, with the file's name."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a\.txt cannot be read: Permission denied"):
        list(load_texts(tmp_path / "a.txt"))
