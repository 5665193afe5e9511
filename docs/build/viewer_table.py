"""The table of what viewers of the live page cost a server."""

from __future__ import annotations

from statistics import median
from typing import Any

from cells import conditions, table
from records import read_lines
from sere.eval.statistics.by_prompt import Estimate
from sere.eval.statistics.by_round import median_of, median_ratio

_ABOUT = """`% of a core`: processor time of the server's processes per second without requests, less that
without viewers."""


def viewers() -> str:
    """What viewers of a real ``vllm serve`` cost: tokens per second, and processor time where it was read."""
    record = read_lines("viewers.jsonl")[-1]
    rates, processor = (_by_count(record.get(name, {})) for name in ("tokens_per_s", "processor_s_per_s"))
    rows = []
    for count, found in sorted(rates.items()):
        row = [str(count), f"{median(found):.1f}", *_cells(median_ratio(found, rates[0]), 4)]
        if processor:
            more = [100 * (a - b) for a, b in zip(processor[count], processor[0], strict=True)]
            row += _cells(median_of(more), 2)
        # Without viewers there is nothing to compare.
        rows.append(row if count else row[:2] + [""] * (len(row) - 2))
    about = (f"\n\n{_ABOUT}" if processor else "") + _looked(record)
    heads = ["viewers", f"tokens/s, median of {len(rates[0])} rounds", "to no viewer", "95 %"]
    return table(rows, [*heads, *["% of a core", "95 %"] * bool(processor)]) + about + conditions([record])


def _looked(record: dict[str, Any]) -> str:
    """Return how often the viewers looked under load, where that was counted."""
    answers, own = (_by_count(record.get(name, {})) for name in ("answers", "viewers_processor_s_per_s"))
    count = max(answers, default=0)
    if not count:
        return ""
    return (
        f"\n\nUnder load, {count} viewers had {median(answers[count]):.0f} answers (median of the rounds), "
        f"and their own process took {100 * median(own[count]):.1f} % of a core."
    )


def _by_count(given: dict[str, list[float]]) -> dict[int, list[float]]:
    return {int(count): found for count, found in given.items()}


def _cells(found: Estimate, digits: int) -> list[str]:
    bounds = "" if found.low is None else f"{found.low:.{digits}f} to {found.high:.{digits}f}"
    return [f"{found.value:.{digits}f}", bounds]
