"""Tables of generated requests and of soaks, made from their records."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.checkout

PROVENANCE = {
    "machine": {"cpu": "c", "cores": 1, "threads": 1, "gpu": None}, "versions": {"torch": "2"},
    "commit": "a", "clean_tree": True, "utc": "2026-01-01",
}  # fmt: skip


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of all tables, headings too."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def fuzzed(requests: int, **others: Any) -> dict[str, Any]:
    """A record of a route, as it was before anything of the engine was in it."""
    quiet = {"count": 9, "above_100_ms": 1, "own_above_100_ms": 0, "own_most": 21.4}
    loud = {"count": 8, "above_100_ms": 3, "own_above_100_ms": 2, "own_most": 321.5}
    return {
        "route": "server GET /x", "slowest_answer_ms": 12.3, "wrong": ["a"], "provenance": PROVENANCE,
        "statuses": {"200": requests, "204": 1, "400": 2, "413": 1, "500": 1, "closed": 3, "no answer": 4},
        "gaps_ms": {"control": quiet, "fuzzed": loud},
    } | others  # fmt: skip


def stops(most: float) -> dict[str, Any]:
    """What the engine noted, with this longest pause."""
    spread = {"count": 9, "p99_9": most - 20, "most": most - 10}
    return {"calls": {"sere_stats": 7, "port": 2}, "own_call_ms": spread,
            "own_pause_ms": spread | {"most": most}, "own_step_ms": spread | {"most": most + 10}}  # fmt: skip


def test_newest_record_of_a_route_counts(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A route fuzzed again replaces the old row; every kind of answer has its column."""
    tables = build("http_tables")
    late = "2 tokens came over 100 ms after the one before"
    old = fuzzed(5, wrong=[]), fuzzed(5, wrong=["a", late])
    monkeypatch.setattr(tables, "read_lines", lambda _: [*old])
    found = rows(tables.fuzz_http())
    assert found[1] == ["server GET /x", "17", "6", "3", "3", "1", "4", "12", "1"]
    assert found[3] == ["server GET /x", "8", "3", "2", "322", "9", "1", "0", "21"]
    assert len(found) == 4
    assert tables.NOT_MEASURED in tables.fuzz_http()


def test_the_engine_s_own_time_has_a_table(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls, the longest pause and step, and the control's; a run with fewer requests hides no longer one."""
    tables = build("http_tables")
    new = fuzzed(1, engine={"fuzzed": stops(50.04), "control": stops(30.0)})
    monkeypatch.setattr(tables, "read_lines", lambda _: [fuzzed(5), new])
    found = rows(tables.fuzz_http())
    assert [row[1] for row in found[1:3]] == ["17", "13"]
    assert found[4] == ["server GET /x", "9", "30.0", "40.0", "50.0", "60.0", "30.0", "40.0"]
    assert found[6][:2] == ["server GET /x", "8"]
    assert len(found) == 7
    assert tables.NOT_MEASURED not in tables.fuzz_http()


def test_a_soak_has_its_requests_readers_and_memory(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for, what was changed and read, the scraper's interval, memory by quarters."""
    record = {
        "outcomes": {"nothing": 7, "tier fast": 5, "settings 200": 4, "settings 400": 1, "stats 200": 9},
        "requests_per_s": {"nobody": 10.0, "scraper": 9.96}, "wrong": ["a"], "tracebacks": 1,
        "scraper": {"ratio": 0.996, "interval": [0.99, 1.01]}, "resident_mb": [1, 2, 3, 4, 5, 6, 7, 8],
        "config": {"seconds": 1800.0, "compiled": True}, "provenance": PROVENANCE,
    }  # fmt: skip
    tables = build("http_tables")
    monkeypatch.setattr(tables, "read_lines", lambda _: [record])
    found = rows(tables.soak())
    assert found[1] == ["compiled", "30", "7", "0", "5", "0", "0", "0", "0", "2", ""]
    assert found[3] == ["4 / 1", "0 / 9", "10.0 / 10.0", "0.996 (0.990 to 1.010)", "2 / 4 / 6 / 8"]
    monkeypatch.setattr(tables, "read_lines", lambda _: [record | {"engine": stops(50.0)}])
    assert rows(tables.soak())[1][-1] == "40 / 50"
    control = {
        "config": record["config"] | {"vanilla": True},
        "requests_per_s": {"nobody": 9.0, "scraper": 0.0},
    }
    monkeypatch.setattr(tables, "read_lines", lambda _: [record | control])
    found = rows(tables.soak())
    assert found[1][0] == "compiled, vanilla"
    assert found[3][2:4] == ["9.0", ""]
