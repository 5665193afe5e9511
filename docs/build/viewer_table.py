"""The table of what viewers of the live page cost a server."""

from __future__ import annotations

from statistics import median

from cells import conditions, table
from records import read_lines
from sere.eval.statistics.by_round import median_ratio


def viewers() -> str:
    """Tokens per second of a real ``vllm serve`` by its number of viewers, and the ratio to no viewer."""
    record = read_lines("viewers.jsonl")[-1]
    rates = {int(count): found for count, found in record["tokens_per_s"].items()}
    rows = []
    for count, found in sorted(rates.items()):
        ratio = median_ratio(found, rates[0])
        bounds = None if ratio.low is None else f"{ratio.low:.4f} to {ratio.high:.4f}"
        rows.append(
            [str(count), f"{median(found):.1f}", *([f"{ratio.value:.4f}", bounds] if count else ["", ""])]
        )
    heads = ["viewers", f"tokens/s, median of {len(rates[0])} rounds", "to no viewer", "95 %"]
    return table(rows, heads) + conditions([record])
