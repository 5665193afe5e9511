"""What two depths of a preset say of the complete model, for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sere.cli.output import case_table, spread_cell


def render_depths(records: Sequence[Mapping[str, Any]], case: Callable[[Mapping[str, Any]], str]) -> str:
    """Return a table for below the times: time per layer and that of the complete model; else nothing.

    Args:
        records: All of a run; those of the deeper model say it.
        case: Returns what a record's batch size or load is called.
    """
    found = [record for record in records if record.get("complete_model") is not None]
    if not found:
        return ""
    one = found[0]["complete_model"]
    fewer, more = one["depths"]
    headers = ["case", "ms per layer", "speedup per layer", f"ms, {one['layers']} layers", "speedup"]
    rows = [(str(record["setting"]), _row(record, case(record))) for record in found]
    return (
        f"\n\nfrom {fewer} and {more} layers to the {one['layers']} of the complete model:\n"
        f"{case_table(rows, headers)}"
    )


def _row(record: Mapping[str, Any], case: str) -> list[Any]:
    complete = record["complete_model"]
    return [
        case,
        f"{complete['ms_per_layer']:.2f}",
        spread_cell(complete["speedup_per_layer"], 3),
        f"{complete['time_ms']:.1f}",
        spread_cell(complete["speedup"], 3),
    ]
