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
    assert (tmp_path / "model.sere.safetensors").is_file()
    shown = re.findall(r"'(\d+\.\d) -> (\d+\.\d)'", capsys.readouterr().out)
    assert len(shown) == 6, "layers of the bundled model"
    assert all(float(after) <= 32.0 < float(before) for before, after in shown)
    assert not [record for record in caplog.records if "nothing was re-routed" in record.getMessage()]
    assert len(code.strip().splitlines()) == 9


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
    """A case measured again takes the old one's place; other threads or another start are another case."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")

    def record(threads: int, tpot: float, **config: object) -> dict[str, object]:
        return {
            "subject": {"model": "m"}, "config": {"mode": "eager"} | config, "batch_size": 8,
            "setting": "off", "provenance": {"machine": {"threads": threads}}, "tpot_ms": tpot,
        }  # fmt: skip

    floored, with_options = {"start": {"min_active": 32}}, {"engine_options": {"block_size": 32}}
    records = [record(1, 9.0), record(2, 5.0), record(1, 8.0), record(1, 7.0, **floored)]
    records += [record(1, 6.0, **with_options), record(1, 4.0, **floored), record(1, 3.0, start={})]
    monkeypatch.setattr(tables, "_lines", lambda _name: records)
    assert [found["tpot_ms"] for found in tables.serve_records()] == [3.0, 5.0, 4.0, 6.0]


@pytest.mark.checkout
def test_engines_with_a_floor_have_a_table_and_leave_the_others_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each setting stands beside the off of its own engine; without such an engine there is no table."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")
    plain = [one for one in tables._lines("serve.jsonl") if not tables.started(one)]
    monkeypatch.setattr(tables, "_lines", lambda _name: plain)
    before = tables.serve()
    assert tables.serve_floor() == tables.NOT_MEASURED

    def floored(name: str, setting: str, tpot: float) -> dict[str, object]:
        found = next(
            one for one in plain
            if (one["setting"], one["batch_size"], one["subject"]["model"], one["config"]["mode"])
            == (name, 8, "qwen3-30b-a3b", "compiled")
        )  # fmt: skip
        changes = {"setting": setting, "tpot_ms": {"p20": tpot, "p50": tpot, "p80": tpot}}
        return found | changes | {"config": found["config"] | {"start": {"min_active": 32}}}

    new = [floored("off", "off", 111.0), floored("sere:S=2", "sere:S=2,min_active=32", 44.0)]
    monkeypatch.setattr(tables, "_lines", lambda _name: [*plain, *new])
    assert tables.serve() == before
    rows = [line.split("|") for line in tables.serve_floor().splitlines() if line.startswith("| qwen")]
    cells = [(row[4].strip(), row[5].strip(), row[6].strip()) for row in rows]
    assert cells == [
        ("8", "", "`off`"), ("8", "", "`sere:S=1`"), ("8", "", "`sere:S=2`"),
        ("8", "min_active=32", "`off`"), ("8", "min_active=32", "`sere:S=2,min_active=32`"),
    ]  # fmt: skip
    assert [row[9].strip() for row in rows[3:]] == ["111.0", "44.0"]
    pictures = importlib.import_module("pictures")
    assert "min_active=32" in pictures.serve(tables.serve_records())


@pytest.mark.checkout
def test_releases_that_differ_are_told_apart_in_the_table_of_architectures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reason stands once, with its number; a cell names releases where they differ, of those checked."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table = importlib.import_module("architecture_table")

    def release(number: str, found: str, **checks: str) -> dict[str, object]:
        entry = {"name": "one", "class": "OneForCausalLM", "checks": {"found": found} | checks}
        provenance = {
            "machine": {"cpu": "c", "cores": 1, "threads": 1, "gpu": None}, "versions": {"torch": "2"},
            "commit": "a", "clean_tree": True, "utc": "2026-01-01",
        }  # fmt: skip
        return {number: {"provenance": provenance, "architectures": [entry]}}

    refused = "refused: OneForCausalLM: Transformers 5.17.0 has none"
    records = release("5.17.0", refused) | release("5.18.0", refused.replace("5.17.0", "5.18.0"))
    records |= release("5.19.1", "works; twice", in_memory="works")
    monkeypatch.setattr(table.tables, "read_json", lambda _name: records)
    text = table.architectures()
    cells = [cell.strip() for cell in text.splitlines()[2].split("|")[1:5]]
    assert cells == ["`one`", "5.17, 5.18, 5.19.1", "5.17, 5.18: no (1); 5.19.1: yes (2)", "yes"]
    assert "1. Transformers has none\n2. twice\n" in text
