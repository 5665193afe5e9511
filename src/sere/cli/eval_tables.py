"""What ``sere eval`` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sere.cli.output import case_table
from sere.cli.terminal import paragraph

_ANSWER_NOTES = """experts: distinct per layer and step, before > after. vs baseline: difference from off
at the same B on the same questions, in percentage points. tokens: mean answer length."""
_ENGLISH_NOTE = " KL: from the unmodified model, nats per token of the English passages."

_PROMPT_NOTES = """Scored in decode steps on the unmodified model's own continuations, from the second token.
experts: distinct per layer and step, before > after. agree: tokens where the setting and the unmodified
model have the same most likely token. KL: from the unmodified model, nats per token; the row of off shows
the effect of rounding. perplexity: of the continuations. 95 %: intervals over prompts, not over tokens."""


def render(record: Mapping[str, Any]) -> str:
    """Return the result of an evaluation as tables, with the meaning of their columns and remarks."""
    shown = _prompts(record) if "continuations" in record else _answers(record)
    return "\n".join([shown, *_remarks(record)])


def _prompts(record: Mapping[str, Any]) -> str:
    headers = ["B", "experts", "rerouted %", "agree %", "95 %", "KL", "95 %", "perplexity", "95 %"]
    rows = [
        (
            case["setting"],
            [
                *_first(case),
                _percent(case["agreement"]["value"]),
                _bounds(case["agreement"], _percent),
                _small(case["kl"]["value"]),
                _bounds(case["kl"], _small),
                _three(case["perplexity"]["value"]),
                _bounds(case["perplexity"], _three),
            ],
        )
        for case in record["cases"]
    ]
    scored = record["continuations"]
    count = f"{scored['prompts']} prompts, {sum(scored['scored_tokens'])} tokens scored"
    return f"{case_table(rows, headers)}\n{paragraph(_PROMPT_NOTES)}\n{count}."


def _answers(record: Mapping[str, Any]) -> str:
    """Return one table over all questions and, where there are several tasks, one by task."""
    cases = record["cases"]
    english = any(case["text"] for case in cases)
    headers = ["B", "experts", "rerouted %", "right %", "95 %", "vs baseline", "95 %", "tokens"]
    rows = [(case["setting"], _overall(case, english)) for case in cases]
    overall = case_table(rows, [*headers, "perplexity", "KL"] if english else headers)
    notes = paragraph(_ANSWER_NOTES + (_ENGLISH_NOTE if english else ""))
    shown = f"{overall}\n{notes}"
    names = [name for name in cases[0]["tasks"] if name != "all"]
    if len(names) == 1:
        return f"{shown}\n{cases[0]['tasks'][names[0]]['n']} {names[0]}."
    by_task = [
        (
            case["setting"],
            [case["batch_size"], *(f"{100 * case['tasks'][name]['share']['value']:.1f}" for name in names)],
        )
        for case in cases
    ]
    counts = {case["tasks"][name]["n"] for case in cases for name in names}
    title = f"Right answers by task, % ({min(counts)} questions each)"
    return f"{shown}\n\n{title}\n{case_table(by_task, ['B', *names])}"


def _remarks(record: Mapping[str, Any]) -> list[str]:
    """Return what else a reader must know: what was left out, and steps smaller than they are called."""
    remarks = []
    plan, scored = record["plan"], record.get("continuations", {})
    if plan.get("chat_template"):
        remarks.append(
            "Texts were given to the model as a user's message (--no-chat-template turns this off)."
        )
    skipped = (plan.get("prompts") or plan.get("source") or {}).get("skipped")
    if skipped:
        remarks.append(f"{skipped} rows of the file are null or blank and were skipped.")
    if scored.get("too_short"):
        remarks.append(
            f"{scored['too_short']} prompts were answered with one token, which comes from prefill, and have "
            "nothing to score."
        )
    for case in record["cases"]:
        if case.get("nothing_changed") is not None:
            remarks.append(f"B={case['batch_size']} {case['setting']}: {case['nothing_changed']}")
        if case["setting"] == "off" and case["rows"] < case["batch_size"]:
            remarks.append(
                f"B={case['batch_size']}: steps had only {case['rows']} rows, because there are too few "
                f"texts; give at least {case['batch_size']}."
            )
    return remarks


def _overall(case: Mapping[str, Any], english: bool) -> list[Any]:
    everything, text = case["tasks"]["all"], case["text"] or {}
    difference = everything.get("difference")
    cells = [
        *_first(case),
        _percent(everything["share"]["value"]),
        _bounds(everything["share"], _percent),
        None if difference is None else f"{100 * difference['value']:+.1f}",
        None if difference is None else _bounds(difference, _percent),
        f"{case['answer_tokens']:.1f}",
    ]
    if english:
        cells += [f"{text['perplexity']:.3f}", f"{text['kl']:.4f}"] if text else [None, None]
    return cells


def _first(case: Mapping[str, Any]) -> Sequence[Any]:
    """Return the cells that every table begins with."""
    experts = case["experts"]
    counted = experts["distinct_before"] is not None
    return [
        case["batch_size"],
        f"{experts['distinct_before']:.1f} > {experts['distinct_after']:.1f}" if counted else None,
        f"{100 * experts['slots_rerouted']:.0f}" if counted else None,
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _small(value: float) -> str:
    """Return a number with four decimals, or in powers of ten where these would show nothing of it."""
    return f"{value:.4f}" if value == 0 or value >= 0.001 else f"{value:.0e}"


def _bounds(interval: Mapping[str, Any], shown: Any) -> str | None:
    """Return an interval's bounds; None where one prompt gives none."""
    if interval["low"] is None:
        return None
    return f"{shown(interval['low'])} to {shown(interval['high'])}"
