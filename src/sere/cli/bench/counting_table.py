"""What counting the uses of each expert costs an engine, for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sere.cli.output import case_table


def render_counting(records: Sequence[Mapping[str, Any]], name: Callable[[Mapping[str, Any]], str]) -> str:
    """Return a table for below the times: engines that count beside those that do not; else nothing.

    Args:
        records: All of a run.
        name: Returns what a record's setting is called.
    """
    from sere.bench.vllm.counting import counting_costs

    found = counting_costs(records)
    if not found:
        return ""
    several = len({one.counting["subject"]["layers"] for one in found}) > 1
    headers = ["load", *["layers"] * several, "tokens/s", "counting", "time", "95 %"]
    rows = [
        (
            name(one.without),
            [
                one.without["load"],
                *[one.without["subject"]["layers"]] * several,
                *(f"{record['tokens_per_s']['p50']:.1f}" for record in (one.without, one.counting)),
                f"{one.time.value:.4f}x",
                None if one.time.low is None else f"{one.time.low:.4f} to {one.time.high:.4f}",
            ],
        )
        for one in found
    ]
    return (
        "\n\ntime with the uses of each expert counted, over that without (median of the rounds' ratios):\n"
        f"{case_table(rows, headers, keys=1 + several)}"
    )
