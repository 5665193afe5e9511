"""What the documents show is what the code does."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's Python, with the path of a real checkpoint and a text file, calibrates and generates."""
    checkpoint = save_checkpoint(tmp_path)
    texts = "\n\n".join(
        f"Document {i} has some words for calibration, and some more of them." for i in range(400)
    )
    (tmp_path / "texts.txt").write_text(texts)
    (code,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code.replace("path/to/moe-model", str(checkpoint)), "README.md", "exec"), names)
    assert (tmp_path / "model.sere.safetensors").is_file()
    assert all(layer.distinct_after <= layer.distinct_before for layer in names["handle"].stats())  # type: ignore[attr-defined]
    assert len(code.strip().splitlines()) == 8


def test_readme_commands_exist() -> None:
    """Every ``sere`` line of the README parses: commands and flags exist."""
    from sere.cli.parser import build_parser

    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("sere ")]
    assert len(lines) >= 4
    for line in lines:
        build_parser().parse_args(line.split()[1:])


def test_readme_is_short() -> None:
    """At most about 150 lines."""
    assert len(README.splitlines()) <= 150


@pytest.mark.checkout
def test_tables_come_from_the_records() -> None:
    """No number was typed: writing the documents anew changes nothing."""
    run = subprocess.run(
        [sys.executable, "benchmarks/documents.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.checkout
def test_newest_record_of_a_case_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case measured again takes the old one's place; another number of threads is another case."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")

    def record(threads: int, tpot: float) -> dict[str, object]:
        return {
            "subject": {"model": "m"}, "config": {"mode": "eager"}, "batch_size": 8, "setting": "off",
            "provenance": {"machine": {"threads": threads}}, "tpot_ms": tpot,
        }  # fmt: skip

    monkeypatch.setattr(tables, "_lines", lambda _name: [record(1, 9.0), record(2, 5.0), record(1, 8.0)])
    assert [found["tpot_ms"] for found in tables.serve_records()] == [8.0, 5.0]
