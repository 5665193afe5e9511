"""The tables of ``sere bench`` and ``sere bench serve`` on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sere.cli.bench import run, serve_tables
from sere.cli.output import show
from tests.support.records import engine_record
from tests.support.terminal import on_terminal


@pytest.mark.parametrize("render", [run.render, serve_tables.render], ids=["run", "serve"])
def test_rows_of_two_depths_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, render: Callable[[list[Any]], str]
) -> None:
    """Where columns follow below, each part has the depths. Records of old formats have no flattening."""
    spread = {"p20": 38.0, "p50": 40.0, "p80": 42.0}
    counts = {"overhead": {"ms_per_step": 1.0}, "nothing_changed": None, "case": "", "tpot_ms": spread}
    records = [
        engine_record("sere:active_experts=8-8/16-16", subject={"layers": layers}, **counts)
        for layers in (4, 16)
    ]
    with on_terminal(monkeypatch, "stdout", 60) as screen:
        show(render(records))
    assert max(map(len, screen.lines)) <= 60
    heads = [line.split() for line in screen.lines if "layers" in line]
    assert len(heads) >= 2
    assert all(head[1] == "layers" for head in heads)
    rows = [words[1] for words in map(str.split, screen.lines) if len(words) > 2 and words[1] in ("4", "16")]
    assert rows == ["4", "16"] * len(heads)
