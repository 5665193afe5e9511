"""What ``sere eval`` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sere.cli.output import table

_AGREEMENT_NOTES = """Scored on the unmodified model's own continuations, in decode steps, on tokens 2 and later
of each. experts: distinct per layer and step, before > after. agreement: tokens where the setting's most
likely token is the one that the unmodified model chose. KL: from the unmodified model to the setting, nats
per token; off's row shows what rounding alone leaves. perplexity: of the continuations. 95 % intervals take
a prompt as one observation."""

def render(record: Mapping[str, Any]) -> str:
    """Return the result as two tables: all tasks together, then each task."""
    cases = record["cases"]
    headers = ["B", "setting", "experts", "moved %", "right %", "95 %", "difference", "95 %", "tokens",
               "perplexity", "KL"]  # fmt: skip
    overall = table([_overall(case) for case in cases], headers)
    names = [name for name in cases[0]["tasks"] if name != "all"]
    rows = [
        [
            case["batch_size"],
            case["setting"],
            *(f"{100 * case['tasks'][name]['share']['value']:.1f}" for name in names),
        ]
        for case in cases
    ]
    counts = {case["tasks"][name]["n"] for case in cases for name in names}
    title = f"Right answers by task, % ({min(counts)} questions each)"
    notes = (
        "experts: distinct per layer and step, before > after. difference: to off at the same B, points,\n"
        "paired. tokens: mean answer length. KL: to the unmodified model, nats per token of English."
    )
    return f"{overall}\n{notes}\n\n{title}\n{table(rows, ['B', 'setting', *names])}"


def _overall(case: Mapping[str, Any]) -> list[Any]:
    everything, experts, text = case["tasks"]["all"], case["experts"], case["text"] or {}
    difference = everything.get("difference")
    return [
        case["batch_size"],
        case["setting"],
        _expert_counts(experts),
        None if experts["moved"] is None else f"{100 * experts['moved']:.0f}",
        f"{100 * everything['share']['value']:.1f}",
        _range(everything["share"]),
        None if difference is None else f"{100 * difference['value']:+.1f}",
        None if difference is None else _range(difference),
        f"{case['answer_tokens']:.1f}",
        f"{text['perplexity']:.3f}" if text else None,
        f"{text['kl']:.4f}" if text else None,
    ]


def _expert_counts(experts: Mapping[str, Any]) -> str | None:
    if experts["before"] is None:
        return None
    return f"{experts['before']:.1f} > {experts['after']:.1f}"


def _range(interval: Mapping[str, float]) -> str:
    return f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}"
