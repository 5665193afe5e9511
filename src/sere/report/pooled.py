"""Tasks of lm-eval taken together: what a setting loses of the right answers to all their questions."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from math import fsum, sqrt

from sere.report.cases import Key, Scored
from sere.report.verdict import Asked, Cost

# Tasks that a command names; of more, a reader has the list.
_MOST_TASKS = 3


def pool(groups: Iterable[Sequence[Scored]]) -> list[Asked]:
    """Return the settings of sere that re-routed, those measured on the same tasks of one run together.

    Counted are tasks whose questions are right or wrong, each by its first such metric.
    Others have no unit in common.

    Args:
        groups: Scores, as `ModelPart.scores` has them.
    """
    chosen: dict[tuple[Key, str, int, str], dict[str, Scored]] = {}
    for one in (one for group in groups for one in group):
        if one.right_or_wrong and re_routed(one):
            tasks = chosen.setdefault((one.run, one.setting, one.batch_size, one.table), {})
            # Of a task that was asked twice, the larger part: the other's questions are among them.
            if one.task not in tasks or tasks[one.task].count < one.count:
                tasks[one.task] = one
    asked: dict[tuple[Key, tuple[str, ...]], list[Sequence[Scored]]] = {}
    for (run, *_), tasks in chosen.items():
        asked.setdefault((run, tuple(sorted(tasks))), []).append(list(tasks.values()))
    return [
        Asked(
            [_cost(scores) for scores in found],
            where=f" in {tasks[0]}" if len(tasks) == 1 else f" in {len(tasks)} tasks of lm-eval",
            again=command(found[0][0], tasks),
            others="other tasks",
            elsewhere=command(found[0][0], ()),
        )
        for (_, tasks), found in asked.items()
    ]


def re_routed(one: Scored) -> bool:
    """Return whether this is a setting of sere that has a difference from off, and counted experts.

    Args:
        one: A score.
    """
    known = one.difference is not None and one.before is not None and one.after is not None
    return known and one.setting.startswith("sere")


def command(one: Scored, tasks: Sequence[str]) -> str:
    """Return the command that asks tasks in the same way, without batch size and settings.

    Args:
        one: A score of the run.
        tasks: Names; empty, or too many for a line, for a placeholder.
    """
    named = " ".join(map(shlex.quote, tasks)) if 0 < len(tasks) <= _MOST_TASKS else "TASKS"
    return f"sere lm-eval MODEL --tasks {named}{one.options}"


def _cost(scores: Sequence[Scored]) -> Cost:
    """Return a setting's cost over tasks, each with the weight of its questions."""
    first, count = scores[0], sum(one.count for one in scores)
    before = fsum(one.count * (one.before or 0.0) for one in scores) / count
    after = fsum(one.count * (one.after or 0.0) for one in scores) / count
    change = _together([(one.count, _gained(one)) for one in scores])
    return Cost(first.setting, first.batch_size, before, after, count, "right", change, first.table)


def _gained(one: Scored) -> Mapping[str, float]:
    """Return the difference from off so that more is better."""
    found = one.difference or {}
    if not one.lower_is_better:
        return found
    return {"value": -found["value"], "low": -found["high"], "high": -found["low"]}


def _together(parts: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Return the mean of differences, weighted by questions, with a 95 % interval.

    No two tasks share questions, so the distances from the value to a bound add up as squares, as they do in
    the interval of each difference (Newcombe, method 10).

    Args:
        parts: Questions, and the difference with its interval.
    """
    count = sum(n for n, _ in parts)
    value = fsum(n * one["value"] for n, one in parts) / count
    below, above = (
        sqrt(fsum((n * (one[name] - one["value"])) ** 2 for n, one in parts)) / count
        for name in ("low", "high")
    )
    return {"value": value, "low": value - below, "high": value + above}
