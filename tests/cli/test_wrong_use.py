"""Wrong use leaves a folder as it was, whatever is wrong and however deep the place that was named."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sere.cli import main

# In a folder with a checkpoint, its table, and texts.
WRONG = (
    "calibrate checkpoint --out new/a --texts texts.txt --metric a,b",
    "calibrate checkpoint --out new/a --texts texts.txt --metric cosine,b",
    "calibrate checkpoint --out new/a --texts texts.txt --metric ,",
    "calibrate checkpoint --out new/a --texts nowhere.txt --metric cosine,cka",
    "calibrate checkpoint --out new/a/b.safetensors --texts texts.txt --parameters '{\"a\": 1}'",
    "calibrate checkpoint --out new/a/b.safetensors --texts texts.txt --low-memory --seq-len 5e4",
    "calibrate checkpoint --out new/a/b.safetensors --texts texts.txt --work-dir new/w --seq-len 0",
    "calibrate checkpoint --out new/a/b.safetensors --low-memory",
    "calibrate checkpoint --out new/a/b.safetensors --texts texts.txt --device cuda:99",
    "calibrate nowhere --out new/a/b.safetensors --texts texts.txt",
    "eval checkpoint --out new/a.json --setting sere:select_top_k=1",
    "eval checkpoint --out new/a.json --setting sere:select_top_k=0 --table table.safetensors",
    "eval checkpoint --out new/a.json --setting off --tasks nothing",
    "eval checkpoint --out new/a.json --setting off --device cuda:99",
    "eval checkpoint --out new/a.json --setting off --batch-size -1",
    "eval checkpoint --out new/a.json --table nowhere.safetensors",
    "eval nowhere --out new/a.json --setting off",
    "bench --out new/a.jsonl",
    "bench --preset nothing --out new/a.jsonl",
    "bench --preset tiny --layers 5000 --out new/a.jsonl",
    "bench --preset tiny --setting sere:active_experts=x --out new/a.jsonl",
    "bench checkpoint --table nowhere.safetensors --out new/a.jsonl",
    "bench serve --preset nothing --out new/a.jsonl",
    "bench serve --preset tiny --setting oea:select_top_k=1 --out new/a.jsonl",
    "bench serve --preset tiny --engine-option nothing --out new/a.jsonl",
    "bench serve --preset tiny --server --request-rate 0 --out new/a.jsonl",
    "generate checkpoint --prompt a --max-new-tokens 0",
    "demo --out new/demo --batch-size 8 0",
    "demo --out new/demo --questions 1e-1",
    "table plot table.safetensors --out new/a.gif",
    "table plot nowhere.safetensors --out new/a.png",
    "table import texts.txt --model checkpoint --out new/a.safetensors",
)


@pytest.mark.parametrize("line", WRONG)
def test_wrong_use_leaves_the_folder_as_it_was(
    line: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """One line on stderr that names the fault, exit code 2, and no file or folder more than before."""
    for name in ("checkpoint", "table.safetensors"):
        (tmp_path / name).symlink_to(checkpoint.parent / name)
    (tmp_path / "texts.txt").write_text("some words that are texts\n" * 20, encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "sere: error: " in capsys.readouterr().err
