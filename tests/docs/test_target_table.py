"""The table of times against targets."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.checkout


def line(layers: int, rows: int, setting: str, times: float, per_layer: float | None) -> dict[str, Any]:
    """One case of a record: so many times as fast with these layers, and for one more layer."""

    def ratio(median: float) -> dict[str, float]:
        return {"p20": median - 0.1, "p50": median, "p80": median + 0.2}

    return {
        "subject": {"layers": layers}, "batch_size": rows, "setting": setting, "speedup": ratio(times),
        "complete_model": None if per_layer is None else {"speedup_per_layer": ratio(per_layer)},
    }  # fmt: skip


def test_each_tier_beside_what_was_wanted(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first setting is ``balanced``, the second ``fast``; the slope is the deeper case's."""
    slow, fast = "sere:active_experts=8-40", "sere:active_experts=8-33"
    lines = [
        line(4, 8, "off", 1.0, None), line(4, 16, slow, 1.2, None), line(4, 8, slow, 1.111, None),
        line(4, 8, f"replay {slow}", 9.9, None), line(4, 8, fast, 1.57, None), line(4, 16, fast, 1.32, None),
        line(8, 8, slow, 9.9, 1.199), line(8, 8, fast, 9.9, 0.977), line(8, 8, f"replay {slow}", 9.9, 9.9),
        line(8, 16, slow, 9.9, 1.013), line(8, 16, fast, 9.9, 1.229), line(4, 8, "vanilla", 9.9, None),
    ]  # fmt: skip
    tables = build("target_table")
    monkeypatch.setattr(tables, "serve_records", lambda _: lines)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in tables.tier_targets().splitlines()]
    assert rows[0] == ["B", "tier", "wanted", "has", "per layer"]
    assert rows[2:] == [
        ["8", "`balanced`", "1.5x", "1.11x (1.01 to 1.31)", "1.20x (1.10 to 1.40)"],
        ["16", "`balanced`", "2x", "1.20x (1.10 to 1.40)", "1.01x (0.91 to 1.21)"],
        ["8", "`fast`", "2x", "1.57x (1.47 to 1.77)", "0.98x (0.88 to 1.18)"],
        ["16", "`fast`", "2.5x", "1.32x (1.22 to 1.52)", "1.23x (1.13 to 1.43)"],
    ]
