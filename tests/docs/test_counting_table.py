"""The documents' table of what it costs to count the uses of each expert."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.records import engine_record

pytestmark = pytest.mark.checkout


def test_engines_that_count_stand_beside_those_that_do_not(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row per load and setting: both rates, and how many times as long a step takes."""
    table = build("counting_table")

    def record(rounds: list[float], **start: Any) -> dict[str, Any]:
        config = {"mode": "compiled", "start": start}
        return engine_record("sere", rounds_ms=rounds, config=config, tokens_per_s={"p50": 1e3 / rounds[0]})

    records = [record([10.0] * 6), record([10.5, 10.2] * 3, count_experts=True)]
    monkeypatch.setattr(table, "serve_records", lambda _: records)
    shown = [line for line in table.serve_counting().splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in shown[2].split("|")[1:-1]] == [
        "B=8", "sere", "100.0", "95.2", "1.0350", "1.0200 to 1.0500", "6",
    ]  # fmt: skip
