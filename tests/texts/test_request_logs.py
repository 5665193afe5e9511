"""Prompts as the log of a server has them: the bodies of OpenAI's requests, one per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sere.errors import DataError
from sere.texts import load_texts

CHAT = {"model": "m", "messages": [{"role": "user", "content": "two and two?"}], "temperature": 0}
COMPLETION = {"model": "m", "prompt": "two and two", "max_tokens": 5}


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        (CHAT, ["user: two and two?"]),
        (COMPLETION, ["two and two"]),
        ({"model": "m", "prompt": ["one", "", "two"]}, ["one", "two"]),
        ({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": CHAT},
         ["user: two and two?"]),
        ({"time": 1, "request": COMPLETION, "response": {"text": "four"}}, ["two and two"]),
        ({"prompt": None, "messages": CHAT["messages"]}, ["user: two and two?"]),
    ],
    ids=["chat", "completion", "several prompts", "batch file", "under request", "null prompt"],
)  # fmt: skip
def test_a_request_is_a_text(row: dict[str, Any], texts: list[str], tmp_path: Path) -> None:
    """As a line of a file and as a row in memory; empty prompts are skipped and counted."""
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    for source in (path, [row]):
        loaded = load_texts(source)
        assert list(loaded) == texts
        assert loaded.skipped == (1 if row.get("prompt") == ["one", "", "two"] else 0)


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]]], ids=["ids", "several"])
def test_token_ids_are_refused_by_name(prompt: Any) -> None:
    """Nobody knows of which tokenizer they are."""
    with pytest.raises(
        DataError, match=r"^texts: position 0: expected a text, got token ids; log the prompt as "
    ):
        list(load_texts([{"prompt": prompt}]))


def test_a_field_that_is_named_is_the_only_one(tmp_path: Path) -> None:
    """Then neither the other fields nor a body are looked at."""
    with pytest.raises(DataError, match="position 0 has no field 'answer'; it has body"):
        list(load_texts([{"body": CHAT}], field="answer"))
    assert list(load_texts([CHAT | {"answer": "four"}], field="answer")) == ["four"]


def test_a_split_of_a_file_is_refused(tmp_path: Path) -> None:
    """Only a data set has splits."""
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(
        DataError, match=r"^texts: split: only a data set has splits, got 'test' for the file"
    ):
        load_texts(tmp_path / "a.txt", split="test")


def test_requests_in_parquet_are_found(tmp_path: Path) -> None:
    """In a column ``body``, too, which is not read where another field is asked for."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"body": [COMPLETION]}), tmp_path / "log.parquet")
    assert list(load_texts(tmp_path / "log.parquet")) == ["two and two"]
