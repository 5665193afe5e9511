"""The picture of a tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sere.tune.picture import draw, draw_frontier

CELL = {"experts_before": 20.0, "experts_after": 9.0, "kl": {"value": 0.01, "low": 0.005, "high": 0.02}}


def record(**changes: Any) -> dict[str, Any]:
    tier = {"active_experts": [[1, 4], [8, 12], [16, 14]], "evidence": {"accepted_kl": 0.01}}
    values: dict[str, Any] = {
        "model": {"name": "tiny", "num_experts": 32},
        "simulated": {B: {"4": {"error": 0.4, "before": 9.0, "after": 4.0}} for B in ("2", "8", "16")},
        "measured": {"8": {"9": CELL, "12": CELL}, "16": {}},
        "tiers": {"balanced": tier, "quick": tier | {"evidence": {"accepted_kl": None}}},
    }
    return values | changes


@pytest.mark.parametrize("name", ["tuning.png", "tuning.svg"])
def test_it_is_written(tmp_path: Path, name: str) -> None:
    """In the format that the path's ending says, also where a batch size was not measured."""
    draw_frontier(record(), tmp_path / "new" / name)
    written = (tmp_path / "new" / name).read_bytes()
    assert written.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    assert len(written) > 5_000


def test_every_point_is_inside() -> None:
    """On both sides, the axes reach as far as what is drawn."""
    for axes in draw(record()).axes:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            if line.get_transform() == axes.transData:
                assert all(left <= x <= right for x in line.get_xdata())
                assert all(bottom <= y <= top for y in line.get_ydata())


def test_it_names_the_tiers(tmp_path: Path) -> None:
    """And the batch sizes that were measured."""
    draw_frontier(record(), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for part in ("balanced", "quick", "8 rows", "tiny"):
        assert f"<!-- {part}" in text or part in text
