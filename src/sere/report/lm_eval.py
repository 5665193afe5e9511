"""What ``sere lm-eval`` measured: each task under each setting, as rows of tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from sere.eval.harness.compare import meaning
from sere.report.cases import Key, Scored
from sere.report.curves import interval
from sere.report.html import DARKEST, Page, Shaded, table

NAME = "tasks of lm-eval"
_HEADS = [
    "metric",
    "rows",
    "setting",
    "value",
    "against off",
    "experts",
    "slots re-routed, %",
    "note",
    "file",
]
# Where the column for the table stands, if there are several: behind the setting.
_TABLE_AT = 3

Record = Mapping[str, Any]


def texts_of(plan: Record) -> str:
    """Return how a run asked its questions, whichever tasks they are of.

    Args:
        plan: Of a record of ``sere lm-eval``; earlier ones do not name lm-eval's version.
    """
    version = plan.get("lm_eval")
    found = ["lm-eval of an unknown version" if version is None else f"lm-eval {version}"]
    if plan["limit"] is not None:
        found.append(f"at most {plan['limit']} questions per task")
    if plan["num_fewshot"] is not None:
        found.append(f"{plan['num_fewshot']} examples")
    if plan["phases"] == "decode":
        found.append("log-likelihoods taken in decode steps")
    if plan["chat_template"]:
        found.append("as chats")
    return ", ".join([*found, f"seed {plan['seed']}"])


def scores_of(source: str, record: Record, run: Key, of_table: str) -> Iterator[Scored]:
    """Return what each setting scored in each task.

    Args:
        source: The record's name.
        record: Of ``sere lm-eval``.
        run: What all its scores can be compared with, ``texts`` from `texts_of`.
        of_table: Metric and fingerprint of its table, or "".
    """
    options = _options(record["plan"])
    for case in record["cases"]:
        for task, found in case["tasks"].items():
            seen = case["requests"][found["requests"]]
            experts = seen["experts"]
            for metric, result in found["metrics"].items():
                yield Scored(
                    source,
                    replace(run, texts=f"{_questions(task, found)}, {run.texts}"),
                    run,
                    case["setting"],
                    int(case["batch_size"]),
                    task,
                    metric.removesuffix(",none"),
                    int(found["n"]),
                    _value(result),
                    result["difference"],
                    bool(result["right_or_wrong"]),
                    experts["distinct_before"],
                    experts["distinct_after"],
                    experts["slots_rerouted"],
                    table=of_table,
                    note=seen["nothing_changed"],
                    meaning=None if result["difference"] is None else meaning(metric, result),
                    lower_is_better=result.get("higher_is_better") is False,
                    options=options,
                )


def _questions(task: str, found: Record) -> str:
    """Return which questions of a task were asked; earlier records have no digest of them."""
    version, digest = found.get("version"), found.get("questions_digest")
    name = task if version is None else f"{task} of version {version}"
    return f"{name}, {found['n']} questions" + ("" if digest is None else f" ({str(digest)[:8]})")


def _options(plan: Record) -> str:
    """Return the options that ask in the same way, beside tasks, limit and seed."""
    found = " --phases decode" if plan["phases"] == "decode" else ""
    if plan["num_fewshot"] is not None:
        found += f" --num-fewshot {plan['num_fewshot']}"
    if plan["chat_template"]:
        found += " --apply-chat-template"
    return f"{found} --engine vllm" if plan.get("engine") == "vllm" else found


def _value(result: Record) -> Mapping[str, float | None] | None:
    """Return lm-eval's value with the bounds that it has; None where lm-eval reports none."""
    if result["value"] is None:
        return None
    bounds = result["interval"] or {"low": None, "high": None}
    return {"value": float(result["value"]), "low": bounds["low"], "high": bounds["high"]}


def by_run(scores: Mapping[tuple[str, Key], Sequence[Scored]]) -> dict[Key, list[Sequence[Scored]]]:
    """Return the groups of scores whose tasks were asked in the same way, by what they share.

    Args:
        scores: By task and key, as `ModelPart.scores` has them.
    """
    found: dict[Key, list[Sequence[Scored]]] = {}
    for group in scores.values():
        found.setdefault(group[0].run, []).append(group)
    return found


def add_scores(page: Page, about: str, groups: Sequence[Sequence[Scored]]) -> None:
    """Add a table for each task.

    Args:
        page: The page.
        about: How the tasks were asked, with what and where.
        groups: The scores of each task, those of one key together.
    """
    page.heading(
        3,
        "Tasks of lm-eval",
        f"{about} Values are those that lm-eval reports, in percent where a question is right or wrong, with "
        "95 % intervals. Against off: on the same questions, at the same rows. Re-routed: in the steps that "
        "decoded a task's requests, the share of slots whose expert changed.",
    )
    heads = list(_HEADS)
    by_table = len({one.table for scores in groups for one in scores if one.table}) > 1
    if by_table:
        heads.insert(_TABLE_AT, "table")
    times = Counter(scores[0].task for scores in groups)
    for scores in groups:
        first = scores[0]
        mine = sorted(scores, key=lambda one: (one.metric, one.batch_size))
        text = table([_row(one, by_table) for one in mine], heads)
        said = dict.fromkeys(
            f"{one.metric}, against off: {one.meaning}." for one in mine if one.meaning is not None
        )
        text += "".join(f"<p>{escape(line)}</p>" for line in said)
        # Of a task that was asked other questions, too, all that is known of them.
        name = f"{first.task}, {first.count} questions" if times[first.task] == 1 else first.key.texts
        page.add(f"<details open><summary>{escape(name)}</summary>{text}</details>")


def _row(one: Scored, by_table: bool) -> list[Any]:
    times, form = (100, "{:+.1f}") if one.right_or_wrong else (1, "{:+.4f}")
    lost = 0.0 if one.difference is None or not one.right_or_wrong else one.difference["value"]
    shown = None if one.value is None else interval(one.value, times, "" if one.right_or_wrong else "{:.4f}")
    row: list[Any] = [
        one.metric,
        one.batch_size,
        one.setting,
        shown and Shaded(shown, lost / DARKEST),
        one.difference and interval(one.difference, times, form),
        None if one.before is None or one.after is None else f"{one.before:.1f} > {one.after:.1f}",
        None if one.rerouted is None else f"{100 * one.rerouted:.0f}",
        one.note,
        one.source,
    ]
    if by_table:
        row.insert(_TABLE_AT, one.table or None)
    return row
