"""A name given for the output, where something lies that somebody still needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sere.cli import main
from sere.errors import OutputError
from sere.table import SimilarityTable
from tests.support.checkpoints import save_checkpoint


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (
            ["calibrate", "MODEL", "--metric", "weights", "--out", "WEIGHTS"],
            "expected a similarity table or no file",
        ),
        (
            ["calibrate", "MODEL", "--texts", "TEXTS", "--out", "TEXTS"],
            "expected a similarity table or no file",
        ),
        (["eval", "MODEL", "--table", "TABLE", "--prompts", "TEXTS", "--out", "TABLE"], "read by the same"),
        (["eval", "MODEL", "--table", "TABLE", "--questions", "ROWS", "--out", "ROWS"], "read by the same"),
        (["eval", "MODEL", "--table", "TABLE", "--prompts", "TEXTS", "--out", "WEIGHTS"], "a record in JSON"),
        (["bench", "MODEL", "--table", "TABLE", "--batch-size", "1", "--out", "TABLE"], "in JSON lines"),
    ],
)
def test_weights_texts_and_tables_are_not_written_over(
    command: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command is refused before any work, and every file is as it was."""
    model = save_checkpoint(tmp_path)
    places = {
        "MODEL": model, "WEIGHTS": model / "model.safetensors", "TABLE": tmp_path / "table.safetensors",
        "TEXTS": tmp_path / "texts.txt", "ROWS": tmp_path / "rows.jsonl",
    }  # fmt: skip
    places["TEXTS"].write_text("a quick brown fox\n" * 20)
    places["ROWS"].write_text('{"prompt": "a", "answer": "b"}\n')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([str(places.get(word, word)) for word in command]) == 2
    assert text in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["table.safetensors", "empty"])
def test_a_table_is_saved_over_a_table(tmp_path: Path, name: str) -> None:
    """``table.save`` replaces an older table and an empty file."""
    save_checkpoint(tmp_path)
    table = SimilarityTable.load(tmp_path / "table.safetensors")
    (tmp_path / "empty").touch()
    table.save(tmp_path / name)
    assert SimilarityTable.load(tmp_path / name).fingerprint == table.fingerprint


def test_a_table_is_not_saved_over_weights(tmp_path: Path) -> None:
    """They are left as they are."""
    model = save_checkpoint(tmp_path)
    table = SimilarityTable.load(tmp_path / "table.safetensors")
    before = (model / "model.safetensors").read_bytes()
    with pytest.raises(
        OutputError, match=r"model\.safetensors: expected a similarity table or no file, got another file"
    ):
        table.save(model / "model.safetensors")
    assert (model / "model.safetensors").read_bytes() == before
