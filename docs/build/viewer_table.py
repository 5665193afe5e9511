"""The table of what viewers of the live page cost a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from cells import conditions, table
from records import read_lines
from sere.eval.statistics.by_prompt import Estimate
from sere.eval.statistics.by_round import median_of, median_ratio

_ABOUT = """`% of a core`: processor time of the server's processes per second without requests, less that
without viewers."""
# What one answer a second takes of a core in per cent, by what it takes in milliseconds.
_PERCENT_PER_MS = 0.1


def viewers() -> str:
    """What viewers of a real ``vllm serve`` cost, by the newest record."""
    record = read_lines("viewers.jsonl")[-1]
    return render(record) + conditions([record])


def render(record: Mapping[str, Any]) -> str:
    """Return what viewers cost: tokens per second, and processor time where it was read.

    Args:
        record: By name and number of viewers, 0 among them, a number of each round: ``tokens_per_s``; if they
            were counted, ``answers``, of all viewers under load, ``viewers_processor_s_per_s``, of their own
            process under load, and ``processor_s_per_s``, of the server without requests. If they were timed,
            ``question_ms`` of questions to the engine, and, of each batch, ``answer_ms`` of the server
            process's processor time per answer and ``answer_others_ms`` of its other processes'.
    """
    rates, processor = (_by_count(record.get(name, {})) for name in ("tokens_per_s", "processor_s_per_s"))
    answer_ms, rows = record.get("answer_ms", []), []
    for count, found in sorted(rates.items()):
        row = [str(count), f"{median(found):.1f}", *_cells(median_ratio(found, rates[0]), 4)]
        if processor:
            more = [100 * (a - b) for a, b in zip(processor[count], processor[0], strict=True)]
            row += _cells(median_of(more), 2)
        if answer_ms:
            row.append(f"{_PERCENT_PER_MS * count * median(answer_ms):.2f}")
        # Without viewers there is nothing to compare.
        rows.append(row if count else row[:2] + [""] * (len(row) - 2))
    about = (f"\n\n{_ABOUT}" if processor else "") + _looked(record)
    heads = ["viewers", f"tokens/s, median of {len(rates[0])} rounds", "to no viewer", "95 %"]
    heads += ["% of a core", "95 %"] * bool(processor) + ["answers"] * bool(answer_ms)
    about += _answered(answer_ms, record.get("answer_others_ms", []))
    return table(rows, heads) + about + _asked(record.get("question_ms", []))


def _answered(answer_ms: Sequence[float], others_ms: Sequence[float]) -> str:
    """Return what one answer to a viewer takes of the process that gives it, where that was timed."""
    if not answer_ms:
        return ""
    found = f"{median(answer_ms):.3f} ms of its processor time (median of {len(answer_ms)} batches"
    return (
        "\n\n`answers`: % of a core that answers to so many viewers take in the server process, one a second "
        f"to each.\nAn answer took {found}, {min(answer_ms):.3f} to {max(answer_ms):.3f}; one\nanswer after "
        f"the other, without requests), and {median(others_ms):.3f} ms of the server's other processes."
    )


def _asked(question_ms: Sequence[float]) -> str:
    """Return the most that one question a second takes of an engine, where questions were timed."""
    if not question_ms:
        return ""
    middle = median(question_ms)
    return (
        f"\n\nA question to the engine took {middle:.1f} ms (median of {len(question_ms)}, one after the "
        f"other; the longest {max(question_ms):.0f} ms).\nViewers together ask one a second: at most "
        f"{middle / 10:.2f} % of the engine's time."
    )


def _looked(record: Mapping[str, Any]) -> str:
    """Return how often the viewers looked under load, where that was counted."""
    answers, own = (_by_count(record.get(name, {})) for name in ("answers", "viewers_processor_s_per_s"))
    count = max(answers, default=0)
    if not count:
        return ""
    return (
        f"\n\nUnder load, {count} viewers had {median(answers[count]):.0f} answers (median of the rounds), "
        f"and their own process took {100 * median(own[count]):.1f} % of a core."
    )


def _by_count(given: Mapping[str | int, Sequence[float]]) -> dict[int, Sequence[float]]:
    return {int(count): found for count, found in given.items()}


def _cells(found: Estimate, digits: int) -> list[str]:
    bounds = "" if found.low is None else f"{found.low:.{digits}f} to {found.high:.{digits}f}"
    return [f"{found.value:.{digits}f}", bounds]
