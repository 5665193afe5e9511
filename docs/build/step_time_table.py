"""Tables of predicted times of decode steps beside the measured ones."""

from __future__ import annotations

from collections.abc import Sequence

from cells import conditions, short, table
from records import NOT_MEASURED, Record, read_json

_RECORD = "step_time.json"
# Of a processor that its records do not tell from another one of the same name.
_EMULATED = "serve_emulated.jsonl"


def step_time() -> str:
    """A row for each machine, model and mode: how far predicted ratios were from measured ones."""
    record = read_json(_RECORD)
    rows = [
        [
            number, group["model"], group["layers"], group["mode"], _ceilings(group),
            f"{group['ceilings']['bytes_per_s'] / 1e9:.0f}",
            f"{group['ceilings']['flops_per_s'] / 1e9:.0f}", _span(group["cells"]), group["cells_compared"],
            _percent(group["median_error"]), _percent(group["largest_error"]),
        ]
        for number, group in zip(_machines(record["groups"]), record["groups"], strict=True)
    ]  # fmt: skip
    headers = [
        "no.", "model", "layers", "mode", "ceilings", "GB/s", "GFLOP/s", "ratios", "cells",
        "median", "largest",
    ]  # fmt: skip
    return table(rows, headers) + conditions([record])


def step_time_machines() -> str:
    """Which processors, threads and commits the machines of the table are."""
    groups = read_json(_RECORD)["groups"]
    named = dict(zip(_machines(groups), groups, strict=True))
    return "\n".join(
        f"- {number}: {group['processor']}, {group['threads']} thread{'s' * (group['threads'] > 1)}"
        f"{', without bfloat16 instructions' * (group['file'] == _EMULATED)}"
        for number, group in named.items()
    )


def step_time_cells() -> str:
    """The measured and the predicted ratio of each cell on the machine whose ceilings were measured."""
    record = read_json(_RECORD)
    rows = [
        [
            cell["rows"], short(cell["setting"]), group["layers"],
            f"{cell['experts_before']:.1f} → {cell['experts_after']:.1f}", f"{cell['measured_ratio']:.2f}x",
            f"{cell['predicted_ratio']:.2f}x", f"{100 * cell['error']:+.0f} %",
        ]
        for group in record["groups"]
        if group["measured"]
        for cell in group["cells"]
    ]  # fmt: skip
    if not rows:
        return NOT_MEASURED
    return table(rows, ["rows", "setting", "layers", "experts", "measured", "predicted", "error"])


def _machines(groups: Sequence[Record]) -> list[int]:
    """Return a number for each group's processor and threads, in the order in which they first come."""
    keys = [(one["processor"], one["threads"], one["file"] == _EMULATED) for one in groups]
    return [list(dict.fromkeys(keys)).index(key) + 1 for key in keys]


def _ceilings(group: Record) -> str:
    return "measured" if group["measured"] else "fitted"


def _span(cells: Sequence[Record]) -> str:
    ratios = [cell["measured_ratio"] for cell in cells]
    return f"{min(ratios):.2f}x to {max(ratios):.2f}x"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
