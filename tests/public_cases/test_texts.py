"""Texts as people have them are read, or the error says what to give."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import sere
from sere.errors import DataError
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model

OPTIONS: dict[str, Any] = {"max_tokens": 128, "seq_len": 16, "progress": False}
CHAT = [{"role": "user", "content": "what is two and two?"}, {"role": "assistant", "content": "it is four"}]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("qwen3_moe")


def test_calibrating_on_chats_uses_the_chat_template(model: Any, tmp_path: Path) -> None:
    """Rows of ``messages`` give the same table as the texts that the template makes of them."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}|{{ m['content'] }}|{% endfor %}"
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": CHAT}) + "\n" for _ in range(5)), encoding="utf-8")
    text = "user|what is two and two?|assistant|it is four|"
    chats = sere.calibrate(model, tokenizer, path, **OPTIONS)
    assert chats.data_digest == sere.calibrate(model, tokenizer, [text] * 5, **OPTIONS).data_digest


def test_one_null_row_is_skipped_and_counted(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A null among the rows does not end a calibration; the log and the table say how many there were."""
    rows = [{"text": "some words of a text"}, {"text": None}] * 8
    with caplog.at_level(logging.WARNING, "sere"):
        table = sere.calibrate(model, tiny_tokenizer(), rows, **OPTIONS | {"seed": None})
    assert "skipped 6 of 13 rows, which hold no text" in caplog.text
    made: Any = table.provenance["calibration"]
    assert made["rows"] == {"read": 13, "skipped": 6}


def test_a_text_in_place_of_a_list_says_to_give_a_list(model: Any) -> None:
    """``sere.calibrate(model, tokenizer, "my text ...")`` is a named error, not the system's."""
    with pytest.raises(DataError, match="or the documents themselves as a list"):
        sere.calibrate(model, tiny_tokenizer(), "my text, and much more of it. " * 40, **OPTIONS)


def test_a_file_of_windows(model: Any, tmp_path: Path) -> None:
    """A byte order mark, CRLF and an upper-case suffix make no difference."""
    rows = [json.dumps({"text": f"row {i} of a file made elsewhere"}) for i in range(9)]
    (tmp_path / "A.JSONL").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    (tmp_path / "b.jsonl").write_bytes("\n".join(rows).encode())
    here, there = (
        sere.calibrate(model, tiny_tokenizer(), tmp_path / name, **OPTIONS) for name in ("A.JSONL", "b.jsonl")
    )
    assert here.data_digest == there.data_digest


def test_json_that_comes_through_a_pipe(model: Any, tmp_path: Path) -> None:
    """A pipe can be read once only; before, ``.json`` was read twice and waited for ever."""
    text = json.dumps([{"text": "some words of a text"}] * 16)
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(text,), daemon=True)
    writer.start()
    found = sere.calibrate(model, tiny_tokenizer(), pipe, **OPTIONS)
    writer.join()
    (tmp_path / "file.json").write_text(text)
    expected = sere.calibrate(model, tiny_tokenizer(), tmp_path / "file.json", **OPTIONS)
    assert found.data_digest == expected.data_digest


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("one.json", '{\n  "text": "some words"\n}\n', "expected an array of rows, or one object per line"),
        ("notes.md", "some words\n", r"ends in '\.md'.*Plain text of another name: copy it to a \.txt file"),
        ("notes", "some words\n", r"Plain text of another name: copy it to a \.txt file"),
    ],
)
def test_files_of_other_forms_say_what_to_give(
    model: Any, tmp_path: Path, name: str, text: str, message: str
) -> None:
    """The error names the forms that are read."""
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        sere.calibrate(model, tiny_tokenizer(), tmp_path / name, **OPTIONS)
