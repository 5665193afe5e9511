"""Cells and tables of the documents, and the line that says how a record was made."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import tabulate

from records import Record, mode
from sere.provenance import describe_machine

# Of a line of text in a document.
_WIDTH = 110


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """Return rows under headers as a table of Markdown."""
    # Headers need no room beside them, so that tables stay narrow. The padding is a global of the library.
    with patch.object(tabulate, "MIN_PADDING", 0):
        return str(tabulate.tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def grouped(
    records: Sequence[Record],
    heading: Callable[[Record], str],
    headers: Sequence[str],
    row: Callable[[Record], list[Any]],
) -> str:
    """Return a table under each heading, in the order in which the headings first come."""
    groups: dict[str, list[list[Any]]] = {}
    for record in records:
        groups.setdefault(heading(record), []).append(row(record))
    return "\n\n".join(
        f"{textwrap.fill(f'**{name}**', _WIDTH)}\n\n{table(rows, headers)}" for name, rows in groups.items()
    )


def conditions(records: Sequence[Record]) -> str:
    """Say on what machine, with which versions and at which commit the records were made."""
    found: dict[str, None] = {}
    for record in records:
        made = record.get("provenance", record)
        machine, versions = made["machine"], made["versions"]
        text = (
            f"{describe_machine(machine)}"
            f"{', ' + machine['gpu'] if machine['gpu'] else ''}; torch {versions['torch']}"
            f"{', transformers ' + versions['transformers'] if 'transformers' in versions else ''}; "
            f"commit {(made['commit'] or 'unknown')[:10]}{'' if made['clean_tree'] else ' with changes'}, "
            f"{made['utc'][:10]}"
        )
        found[text] = None
    return "\n\n" + "\n".join(f"*{text}.*" for text in found)


def short(setting: str) -> str:
    """Return a setting whose list of M by rows is its first and last point, with M and τ as letters."""
    found = re.sub(r"active_experts=(\d+-\d+)(?:/\d+-\d+)*/(\d+-\d+)", r"M=\1/…/\2", setting)
    return setting if found == setting else found.replace("min_gain=", "τ=")


def counts(experts: Mapping[str, float] | None) -> str:
    """Return the distinct experts before and after; empty if nothing was counted."""
    return "" if experts is None else f"{experts['distinct_before']:.1f} → {experts['distinct_after']:.1f}"


def interval(found: Mapping[str, float], form: str, *, times: float = 1) -> str:
    """Return a value with its bounds, each multiplied and formatted."""
    value, low, high = (form.format(times * found[name]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def points(difference: Mapping[str, float] | None) -> str:
    """Return a difference of shares in percentage points with its interval; empty for the baseline."""
    if difference is None:
        return ""
    value, low, high = (100 * difference[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def right(case: Record) -> list[str]:
    """Return the share of right answers, and its paired difference to the baseline."""
    everything = case["tasks"]["all"]
    return [f"{100 * everything['share']['value']:.1f}", points(everything.get("difference"))]


def time(record: Record) -> list[str]:
    """Return the median time per output token and the speedup."""
    return [f"{record['tpot_ms']['p50']:.1f}", f"{record['speedup']['p50']:.2f}x"]


def per_layer(complete: Record | None) -> str:
    """Return how much faster one more layer is, by two depths; empty where one depth was timed."""
    return "" if complete is None else f"{complete['speedup_per_layer']['p50']:.2f}x"


def spread(ratio: Mapping[str, float]) -> str:
    """Return how many times as fast: the median, and from the 20th to the 80th percentile."""
    return f"{ratio['p50']:.2f}x ({ratio['p20']:.2f} to {ratio['p80']:.2f})"


def over_replay(record: Record, replay: Record | None) -> str:
    """Return how much longer a step takes than with recorded ids and pairs, in percent; empty without."""
    if replay is None:
        return ""
    return f"{100 * (record['tpot_ms']['p50'] / replay['tpot_ms']['p50'] - 1):+.1f} %"


def shapes(records: Sequence[Record]) -> str:
    """Return a line that names the models whose layers ran, and how."""
    names = dict.fromkeys(
        ", ".join([record["subject"]["model"], *([mode(record)] if "mode" in record["config"] else [])])
        for record in records
    )
    return f"**Layers of {'; '.join(names)}**\n\n"
