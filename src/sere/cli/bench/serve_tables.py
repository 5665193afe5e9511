"""What ``sere bench serve`` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sere.cli.bench.counted_cells import experts_cell, pairs_cell
from sere.cli.bench.counting_table import render_counting
from sere.cli.bench.depth_table import render_depths
from sere.cli.output import case_table, reasons, spread_cell
from sere.summaries import pairs


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with one row per case of engines; then what two depths say, and what counting costs."""
    several = len({record["subject"]["layers"] for record in records}) > 1
    headers = ["load", *["layers"] * several, "ms", "speedup", "over vanilla", "experts", "pairs", "overhead"]
    rows = [(_name(record), _row(record, several)) for record in records]
    table = case_table(rows, headers, keys=1 + several)
    depths = render_depths(records, lambda one: str(one["load"]))
    return table + _reasons(records) + depths + render_counting(records, _name)


def _reasons(records: Sequence[Mapping[str, Any]]) -> str:
    return reasons((record["case"], record["nothing_changed"]) for record in records)


def _row(record: Mapping[str, Any], depth: bool) -> list[Any]:
    overhead = record["overhead"]
    return [
        record["load"],
        *[record["subject"]["layers"]] * depth,
        f"{record['time_ms']['p50']:.2f}",
        spread_cell(record["speedup"], 3),
        spread_cell(record["speedup_over_vanilla"], 3),
        experts_cell(record["experts"]),
        pairs_cell(record.get("flattening")),
        None if overhead is None else f"{100 * overhead['ms_per_step'] / record['time_ms']['p50']:.1f} %",
    ]


def render_online(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the records of a server under load as a table with one row per case."""
    headers = ["requests", "TPOT ms", "speedup", "tokens/s", "TTFT ms", "p90", "experts", "rows", "failed"]
    rows = [(_name(record), _online_row(record)) for record in records]
    return case_table(rows, headers) + _reasons(records)


def _online_row(record: Mapping[str, Any]) -> list[Any]:
    ttft, experts = record["ttft_ms"], record["experts"]
    return [
        record["case"].partition(",")[0],
        f"{record['tpot_ms']['p50']:.2f}",
        spread_cell(record["speedup"], 3),
        f"{record['tokens_per_s']['p50']:.0f}",
        f"{ttft['p50']:.0f}",
        f"{ttft['p90']:.0f}",
        experts_cell(experts),
        None if experts is None else f"{experts['rows']:.1f}",
        record["failed"],
    ]


def _name(record: Mapping[str, Any]) -> str:
    """Return a setting with what its engine was started with."""
    started = ", ".join(pairs(record["config"]["start"]))
    return f"{record['setting']} (engine with {started})" if started else str(record["setting"])
