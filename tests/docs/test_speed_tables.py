"""Tables of what one layer's experts cost, where its bits stay, and what a least gain leaves out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.records import engine_record

pytestmark = pytest.mark.checkout


def test_one_layers_experts(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel has a table with a column for each variant; the newest record of a case counts."""
    made = engine_record("off")["provenance"]

    def call(kernel: str, variant: str, median: float) -> dict[str, Any]:
        config = {"kernel": kernel, "T": 8, "M": 15, "variant": variant}
        return {"config": config, "median": median, "off_over_this": 9.0 / median, **made}

    records = [call("vllm", "off", 8.0), call("vllm", "off", 9.0), call("vllm", "3 kept", 3.0)]
    records.append(call("eager", "off", 9.0))
    tables = build("speed_tables")
    monkeypatch.setattr(tables, "read_lines", lambda _: records)
    text = tables.flatten()
    rows = [line for line in text.splitlines() if line.startswith("| 8")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows]
    assert cells == [["8", "15", "9.0 (1.00x)", "3.0 (3.00x)"], ["8", "15", "9.0 (1.00x)"]]
    assert re.findall(r"\*\*(.*)\*\*", text) == ["vllm", "eager"]


def test_what_pairs_gain(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row per number of rows, M and least gain; the newest record of a case counts."""
    made = engine_record("off")["provenance"]

    def case(gain: float, faster: float) -> dict[str, Any]:
        times = {"p20": 0.9, "median": faster, "p80": 1.5}
        config = {"T": 16, "M": 32, "which": "formula", "min_gain": gain}
        shares = {"pairs_share": 0.75, "auto_share": 0.5, "slots_ms": times, "pairs_ms": times}
        return {"config": config, "faster": times, **shares, **made}

    tables = build("speed_tables")
    monkeypatch.setattr(tables, "read_lines", lambda _: [case(0.01, 1.1), case(0.03, 1.3), case(0.01, 1.2)])
    lines = [line for line in tables.flat_steps().splitlines() if line.startswith("| 16")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    start = ["16", "32 (formula)"]
    assert cells[0] == [*start, "0.01", "75 %", "1.2", "1.2", "1.20x (0.90 to 1.50)", "50 %"]
    assert cells[1][2:] == ["0.03", "75 %", "1.3", "1.3", "1.30x (0.90 to 1.50)", "50 %"]


def test_a_step_on_the_host(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest record counts: a row per load, a column per number of requests."""
    made = engine_record("off")["provenance"]
    sizes = {"p20": 6.04, "median": 7.06, "p80": 8.0}
    cases = [{"load": "decode", "requests": count, **sizes} for count in (512, 64)]
    records = [{"cases": []}, {"cases": cases, "provenance": made}]
    tables = build("speed_tables")
    monkeypatch.setattr(tables, "read_lines", lambda _: records)
    lines = [line for line in tables.row_budgets().splitlines() if line.startswith("|")]
    head, row = ([cell.strip() for cell in lines[at].split("|")[1:-1]] for at in (0, 2))
    assert head == ["load", "64 requests", "512 requests"]
    assert row == ["decode", *["7.1 (6.0 to 8.0)"] * 2]


def test_where_bits_stay_is_said_in_words(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that all have the same bits are equal; else their number and the largest difference are given."""
    made = engine_record("off")["provenance"]
    records = [
        {
            "config": {"kernel": "k", "dtype": "float32", "rows": kind},
            "equal_rows": equal, "rows": 64, "largest_eps": 1.24, **made,
        }
        for kind, equal in (("one", 64), ("twice", 3))
    ]  # fmt: skip
    tables = build("speed_tables")
    monkeypatch.setattr(tables, "read_lines", lambda _: records)
    row = tables.flat_bits().splitlines()[2]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "k", "float32", "equal", "3 of 64 equal; 1.2 ε",
    ]  # fmt: skip


def test_least_gains_are_beside_each_other(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell has a row, and a column for each τ: the experts that a row computes, and the divergence."""
    tables = build("fill_tables")
    made = engine_record("off")["provenance"]

    def measured(rule: str, pairs: float, kl: float) -> dict[str, Any]:
        return {
            "measure": "divergence", "model": "m", "batch_size": 16, "active_experts": 24, "rule": rule,
            "kl": [kl, kl], "tokens": [10, 30], "experts": {"pairs_per_row": pairs}, "provenance": made,
        }  # fmt: skip

    records = [measured("s4/similar", 9.0, 9.0), measured("s4/similar,gain=0.01", 5.0, 0.4)]
    records.append(measured("s4/similar,gain=0", 7.1, 0.3))
    monkeypatch.setattr(tables, "read_lines", lambda _: records)
    header, _, row = tables.fill_gain().splitlines()[:3]
    assert [cell.strip() for cell in header.split("|")[4:-1]] == ["τ = 0", "τ = 0.01"]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["m", "16", "24", "7.1, 0.0150", "5.0, 0.0200"]
    monkeypatch.setattr(tables, "read_lines", lambda _: records[:1])
    with pytest.raises(FileNotFoundError):
        tables.fill_gain()


def test_settings_are_short_in_tables(build: Any) -> None:
    """A list of M by rows is its first and last point; other settings are as they are typed."""
    short = build("cells").short
    assert short("sere:active_experts=8-40/16-63/128-89,min_gain=0.01") == "sere:M=8-40/…/128-89,τ=0.01"
    assert short("sere:active_experts=8-40/16-63") == "sere:M=8-40/…/16-63"
    same = "sere:active_experts=0.25,min_gain=0.01"
    assert short(same) == same


def test_a_heading_is_as_wide_as_text(build: Any) -> None:
    """The name of a machine may be long."""
    found = build("cells").grouped([{}], lambda _: "processor " * 12 + "x", ["a"], lambda _: ["1"])
    heading = found.partition("\n\n")[0]
    assert max(map(len, heading.splitlines())) <= 110
    assert heading.replace("\n", " ") == f"**{'processor ' * 12}x**"
