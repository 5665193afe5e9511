"""What ``sere lm-eval`` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sere.cli.output import case_table, reasons
from sere.cli.terminal import paragraph
from sere.eval.harness.compare import meaning
from sere.eval.harness.scored import DECODE

_NOTES = """value: as lm-eval reports it. experts: distinct per layer and decode step, before > after. vs off:
difference from the unmodified model at the same B on the same questions, with a 95 % interval: percentage
points where a question is right or wrong, else the mean difference of a question's own value."""
_FILLED = "\nWith --phases decode, experts also counts rows without a score, which keep the last steps full."


def render(record: Mapping[str, Any]) -> str:
    """Return the result as a table, with the meaning of its columns and remarks."""
    rows = [
        (case["setting"], _cells(case, task, metric))
        for case in record["cases"]
        for task, found in case["tasks"].items()
        for metric in found["metrics"]
    ]
    shown = case_table(rows, ["B", "task", "n", "metric", "value", "experts", "vs off", "95 %"], keys=2)
    said = [
        (f"B={case['batch_size']} {case['setting']}", seen["nothing_changed"])
        for case in record["cases"]
        for seen in case["requests"].values()
    ]
    notes = _NOTES + (_FILLED if record["plan"]["phases"] == DECODE else "")
    return f"{shown}\n{paragraph(notes)}{reasons(_meanings(record))}{reasons(said)}"


def _meanings(record: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Return the unit and the direction of each metric that has a difference, where a reader could err."""
    return list(
        dict.fromkeys(
            (f"{metric.removesuffix(',none')}, vs off", meaning(metric, result))
            for case in record["cases"]
            for found in case["tasks"].values()
            for metric, result in found["metrics"].items()
            if result["difference"] is not None
        )
    )


def _cells(case: Mapping[str, Any], task: str, metric: str) -> Sequence[Any]:
    found = case["tasks"][task]
    result = found["metrics"][metric]
    scale = 100 if result["right_or_wrong"] else 1
    digits = 1 if result["right_or_wrong"] else 4
    difference = result["difference"]
    experts = case["requests"][found["requests"]]["experts"]
    counted = experts["distinct_before"] is not None
    low = None if difference is None else difference["low"]
    return [
        case["batch_size"],
        task,
        found["n"],
        metric.removesuffix(",none"),
        None if result["value"] is None else f"{scale * result['value']:.{digits}f}",
        f"{experts['distinct_before']:.1f} > {experts['distinct_after']:.1f}" if counted else None,
        None if difference is None else f"{scale * difference['value']:+.{digits}f}",
        None if low is None else f"{scale * low:+.{digits}f} to {scale * difference['high']:+.{digits}f}",
    ]
