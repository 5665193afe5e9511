"""The section on lm-eval's own output, made from a record."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.checkout


def run(engine: str, setting: str, value: float) -> dict[str, Any]:
    values = {"sere_a": {"value": value, "stderr": 0.05}, "sere_b": {"value": 1.0, "stderr": 0.0}}
    said = {"experts": {"distinct_before": 9.0, "distinct_after": 6.0}, "log": None}
    if engine == "vllm":
        said = {"experts": None, "log": "sere: 7 steps re-routed"}
    shown = [f"|{setting} {engine}|"]
    return {"engine": engine, "setting": setting, "values": values, "table": shown} | said


def test_runs_stand_side_by_side(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column per run with its standard errors and mean; below, what was printed, unchanged."""
    machine = {"cpu": "c", "gpu": None, "cores": 1, "threads": 1}
    made = {"machine": machine, "versions": {"torch": "2"}, "commit": "a", "clean_tree": True, "utc": "2026"}
    record = {"provenance": made, "runs": [run("transformers", "off", 0.5), run("vllm", "sere", 0.25)]}
    tables = build("harness_table")
    monkeypatch.setattr(tables, "read_json", lambda _name: record)
    text = tables.harness()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert rows[0] == ["exact_match", "Transformers, off", "vLLM, sere"]
    assert rows[2:6] == [
        ["sere_a", "0.50 ± 0.0500", "0.25 ± 0.0500"], ["sere_b", "1.00 ± 0.0000", "1.00 ± 0.0000"],
        ["mean", "0.7500", "0.6250"], ["experts", "9.0 → 6.0", ""],
    ]  # fmt: skip
    assert "**vLLM, sere**\n\n|sere vllm|\n\nThe engine's log:\n\n```\nsere: 7 steps re-routed\n```" in text
    assert text.endswith("commit a, 2026.*")


def test_an_engine_without_a_run_is_named(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of its columns."""
    tables = build("harness_table")
    record = {"runs": [run("transformers", "off", 0.5)]}
    monkeypatch.setattr(tables, "read_json", lambda _name: record)
    monkeypatch.setattr(tables, "conditions", lambda _records: "")
    assert "*Not measured yet: vLLM.*" in tables.harness()
