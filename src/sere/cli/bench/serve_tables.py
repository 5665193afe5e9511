"""What ``sere bench serve`` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sere.cli.output import case_table, reasons, spread_cells


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the records as a table with one row per case."""
    headers = ["B", "TPOT ms", "p20 to p80", "speedup", "p20 to p80", "tokens/s",
               "TTFT ms", "experts", "MB read", "overhead µs/layer", "% of step"]  # fmt: skip
    return case_table([(_name(record), _row(record)) for record in records], headers) + _reasons(records)


def _reasons(records: Sequence[Mapping[str, Any]]) -> str:
    return reasons((record["case"], record["nothing_changed"]) for record in records)


def _row(record: Mapping[str, Any]) -> list[Any]:
    tpot, speedup, experts = record["tpot_ms"], record["speedup"], record["experts"]
    overhead, read = record["overhead"], record["expert_bytes_per_step"]
    return [
        record["batch_size"],
        *spread_cells(tpot, 2),
        *spread_cells(speedup, 3),
        f"{record['tokens_per_s']['p50']:.0f}",
        f"{record['ttft_ms']['p50']:.0f}",
        None if experts is None else f"{experts['distinct_before']:.1f} > {experts['distinct_after']:.1f}",
        None if read is None else f"{read / 1e6:.0f}",
        None if overhead is None else f"{overhead['us_per_layer']:.0f}",
        None if overhead is None else f"{100 * overhead['ms_per_step'] / tpot['p50']:.1f}",
    ]


def render_online(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the records of a server under load as a table with one row per case."""
    headers = ["requests", "TPOT ms", "p20 to p80", "speedup",
               "p20 to p80", "tokens/s", "requests/s", "TTFT ms", "p90", "experts", "rows", "MB read",
               "failed"]  # fmt: skip
    rows = [(_name(record), _online_row(record)) for record in records]
    return case_table(rows, headers) + _reasons(records)


def _online_row(record: Mapping[str, Any]) -> list[Any]:
    tpot, speedup, ttft = record["tpot_ms"], record["speedup"], record["ttft_ms"]
    experts, read = record["experts"], record["expert_bytes_per_step"]
    return [
        record["case"].partition(",")[0],
        *spread_cells(tpot, 2),
        *spread_cells(speedup, 3),
        f"{record['tokens_per_s']['p50']:.0f}",
        f"{record['requests_per_s']['p50']:.2f}",
        f"{ttft['p50']:.0f}",
        f"{ttft['p90']:.0f}",
        None if experts is None else f"{experts['distinct_before']:.1f} > {experts['distinct_after']:.1f}",
        None if experts is None else f"{experts['rows']:.1f}",
        None if read is None else f"{read / 1e6:.0f}",
        record["failed"],
    ]


def _name(record: Mapping[str, Any]) -> str:
    """Return a setting with what its engine was started with."""
    started = ", ".join(pairs(record["config"]["start"]))
    return f"{record['setting']} (engine with {started})" if started else str(record["setting"])


def pairs(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as ``name=value``."""
    return [f"{name}={value}" for name, value in settings.items()]
