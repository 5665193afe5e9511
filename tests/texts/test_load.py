from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sere.errors import DataError, MissingDependency
from sere.texts import load_texts, shuffled

pa = pytest.importorskip("pyarrow", reason="parquet needs the data extra")


def _jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def test_list_passes_through_without_blank_documents() -> None:
    """Documents given as a list come in their order; blank ones are dropped."""
    assert list(load_texts(["one", "  \n", "two"])) == ["one", "two"]


def test_txt_is_cut_at_line_ends_and_loses_nothing(tmp_path: Path) -> None:
    """A long text file comes in several documents, each ending at a line end, that join to the file."""
    text = "".join(f"line {i} of a long file\n" for i in range(3000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    documents = list(load_texts(tmp_path / "a.txt"))
    assert len(documents) > 2
    assert "".join(documents) == text
    assert all(document.endswith("\n") for document in documents)


def test_txt_without_line_ends_is_cut_too(tmp_path: Path) -> None:
    """One endless line does not come as one document: memory stays bounded."""
    (tmp_path / "a.txt").write_text("x" * 100_000, encoding="utf-8")
    documents = list(load_texts(tmp_path / "a.txt"))
    assert "".join(documents) == "x" * 100_000
    assert max(map(len, documents)) <= 2 * 16_384


def test_jsonl_takes_the_named_field_and_skips_blank_lines(tmp_path: Path) -> None:
    """Every object's field comes, in order; an empty line is no object and no error."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n\n{"body": "two", "n": 3}\n', encoding="utf-8")
    assert list(load_texts(path, field="body")) == ["one", "two"]


def test_parquet_takes_the_named_column(tmp_path: Path) -> None:
    """Every row's column comes, in order."""
    path = _parquet(tmp_path / "a.parquet", {"id": [1, 2], "text": ["one", "two"]})
    assert list(load_texts(path)) == ["one", "two"]


def test_seed_orders_documents_repeatably() -> None:
    """One seed gives one order, another seed another, and nothing is lost or doubled."""
    documents = [f"d{i}" for i in range(50)]
    first, again, other = (list(load_texts(documents, seed=seed)) for seed in (0, 0, 1))
    assert first == again != documents
    assert first != other
    assert sorted(first) == sorted(documents)


def test_shuffling_holds_a_bounded_number_of_documents() -> None:
    """The first document leaves when the buffer is full, however long the source is, and none is lost."""
    drawn: list[int] = []

    def endless() -> object:
        for i in range(100):
            drawn.append(i)
            yield f"d{i}"

    stream = shuffled(endless(), seed=0, buffer=5)  # type: ignore[arg-type]
    head = next(stream)
    assert len(drawn) == 6
    assert sorted([head, *stream]) == sorted(f"d{i}" for i in range(100))


def test_missing_file_is_named_at_once(tmp_path: Path) -> None:
    """A file that is not there is an error before anything is read, with its name."""
    with pytest.raises(DataError, match=r"no file .*nowhere\.jsonl; give a"):
        load_texts(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"no file nowhere\.csv; give a \.txt"):
        load_texts("nowhere.csv")


def test_folder_and_unknown_kind_are_refused(tmp_path: Path) -> None:
    """A folder, and a file of another kind, name what is expected."""
    with pytest.raises(DataError, match=r"is a folder; expected a \.txt, \.jsonl, \.json, \.parquet file"):
        load_texts(tmp_path)
    (tmp_path / "a.csv").write_text("text\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"ends in '\.csv'; expected one of"):
        load_texts(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{not json", r"a\.jsonl line 2 is not JSON"),
        ("3", r"a\.jsonl line 2: expected an object, got int"),
        ('{"body": "x"}', r"a\.jsonl line 2 has no field 'text'; it has body"),
        (
            '{"text": 5}',
            r"a\.jsonl line 2: expected a string in field 'text' \(or a list of messages\), got int",
        ),
        ('{"text": "\\ud83d"}', r"a\.jsonl line 2: contains an unpaired surrogate \(U\+D83D\) at position 0"),
    ],
)
def test_bad_jsonl_line_is_named_with_its_number(tmp_path: Path, line: str, text: str) -> None:
    """What is wrong with a line, and which line it is, stands in the error."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=text):
        list(load_texts(path))


def test_parquet_errors_name_columns_and_rows(tmp_path: Path) -> None:
    """A missing column lists those there are; a wrong value is named with its row; so is a damaged file."""
    path = _parquet(tmp_path / "a.parquet", {"words": ["x"]})
    with pytest.raises(DataError, match=r"has no column 'text'; it has words"):
        list(load_texts(path))
    path = _parquet(tmp_path / "b.parquet", {"text": [1]})
    with pytest.raises(DataError, match=r"b\.parquet row 0: expected a string in field 'text'.*got int"):
        list(load_texts(path))
    (tmp_path / "c.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"c\.parquet cannot be read as parquet"):
        list(load_texts(tmp_path / "c.parquet"))


def test_source_without_text_is_refused(tmp_path: Path) -> None:
    """An empty file, an empty list and blank documents are one error that names the source."""
    (tmp_path / "a.txt").write_text(" \n\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.txt holds no text"):
        list(load_texts(tmp_path / "a.txt"))
    with pytest.raises(DataError, match=r"the list holds no text"):
        list(load_texts([]))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """A Latin-1 file is named as such instead of giving wrong characters."""
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8"):
        list(load_texts(tmp_path / "a.txt"))


def test_list_of_other_things_is_refused() -> None:
    """A list that holds something else than strings names the position."""
    with pytest.raises(DataError, match=r"position 1: expected a string or a row.*, got int"):
        list(load_texts(["a", 3]))  # type: ignore[list-item]


def test_data_set_name_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the datasets package a name that is no file gives the line that installs it."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingDependency, match=r"'wikitext' is not a file here.*pip install '\.\[datasets\]'"
    ):
        load_texts("wikitext")


def test_parquet_needs_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without pyarrow a parquet file gives the line that installs it."""
    path = _parquet(tmp_path / "a.parquet", {"text": ["x"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"pip install '\.\[data\]'"):
        list(load_texts(path))


def test_the_script_of_a_data_set_is_not_run_and_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that would ask on the terminal is told no."""
    told: list[object] = []

    def load_dataset(
        *name: str, trust_remote_code: bool | None = None, **options: Any
    ) -> list[dict[str, str]]:
        told.append(trust_remote_code)
        return [{"text": "one"}]

    library = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert list(load_texts("wiki")) == ["one"]
    assert told == [False]


def test_data_set_is_streamed_by_name_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """``name:config`` and the split reach the library, in streaming mode; its errors become one of ours."""
    calls: list[object] = []

    class Library:
        @staticmethod
        def load_dataset(
            name: str, config: str | None, *, split: str, streaming: bool
        ) -> list[dict[str, str]]:
            calls.append((name, config, split, streaming))
            if name == "gone":
                raise FileNotFoundError("no such data set")
            return [{"text": "one"}, {"text": "two"}]

    monkeypatch.setitem(sys.modules, "datasets", Library)
    assert list(load_texts("wiki:small", split="test")) == ["one", "two"]
    assert calls == [("wiki", "small", "test", True)]
    with pytest.raises(DataError, match="no file and no data set 'gone'"):
        list(load_texts("gone"))
