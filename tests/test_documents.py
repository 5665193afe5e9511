"""What the documents show is what the code does."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sere.bundled import model_path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


@pytest.mark.slow
def test_readme_python_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The README's Python as printed, on the bundled model: experts fall in each layer, and it prints it."""
    texts = "\n\n".join(
        f"Document {i} has some words for calibration, and some more of them." for i in range(40)
    )
    (tmp_path / "texts.txt").write_text(texts)
    (code,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code.replace("path/to/moe-model", str(model_path())), "README.md", "exec"), names)
    assert (tmp_path / "similarity.sere").is_file()
    shown = re.findall(r"layer \d+: (\d+\.\d) -> (\d+\.\d) experts", capsys.readouterr().out)
    assert len(shown) == 6, "layers of the bundled model"
    assert all(float(after) <= 32.0 < float(before) for before, after in shown)
    assert not [record for record in caplog.records if "nothing was re-routed" in record.getMessage()]


def test_numbers_of_the_first_screen_are_those_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch costs and what changes is said in words, with the numbers of the table below it."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "build"))
    records = importlib.import_module("records")
    cases = records.recommended_cases(records.read_json("demo.json"))
    off, on = cases[16]
    words = " ".join(README.split("![")[0].split())
    alone, batch = (f"{case['distinct_after']:.0f}" for case in (cases[1][0], off))
    assert f"that is {alone} of 96 experts for one token, but {batch} for a batch of 16" in words
    assert f"a batch of 16 reads {on['distinct_after']:.0f} experts" in words
    assert f"decodes {on['speedup']['p50']:.2f} times as fast" in words
    right = [f"{100 * case['share']['value']:.1f} %" for case in (on, off)]
    assert f"answers {right[0]} of our questions right, against {right[1]} without sere" in words


@pytest.mark.checkout
def test_tables_come_from_the_records() -> None:
    """No number was typed: writing the documents again changes nothing."""
    run = subprocess.run(
        [sys.executable, "docs/build/documents.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
