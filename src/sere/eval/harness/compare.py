"""lm-eval's samples of two settings, compared question by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from numbers import Real
from typing import Any

from sere.eval.digests import texts_digest
from sere.eval.statistics.by_prompt import mean_per_token
from sere.eval.statistics.by_question import paired_difference, wilson

_KIND = {"multiple_choice": "loglikelihood"}
# Metrics that lm-eval makes of log-likelihoods, by what a question's log-likelihood is divided by.
_LOG_LIKELIHOOD_PER = {
    "perplexity": "question",
    "word_perplexity": "word",
    "byte_perplexity": "byte",
    "bits_per_byte": "byte",
}


def task_results(results: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Return what one run of lm-eval found, task by task; JSON-ready.

    Args:
        results: What lm-eval's ``simple_evaluate`` returned, with its samples.
        kinds: By task, lm-eval's ``output_type``.

    Returns:
        By task: ``requests``, the kind of its requests; ``n``, its questions; ``version`` of the task, and
        ``questions_digest``, of its questions as they were asked, each None if lm-eval does not say; and
        ``metrics``, by lm-eval's name ``metric,filter``: the ``value`` that lm-eval reports;
        ``higher_is_better``, which lm-eval says of it, None if it does not; and the ``values`` of the
        questions in order, each a number or a pair (sum, weight); None if a question's value is neither.
    """
    better = results.get("higher_is_better", {})
    found = {}
    for task, samples in results["samples"].items():
        rows = sorted(samples, key=lambda sample: (sample["filter"], sample["doc_id"]))
        metrics: dict[str, dict[str, Any]] = {}
        for filtered in dict.fromkeys(row["filter"] for row in rows):
            own = [row for row in rows if row["filter"] == filtered]
            for metric in own[0]["metrics"]:
                name = f"{metric},{filtered}"
                value = _number(results["results"][task].get(name))
                metrics[name] = {
                    "value": value,
                    "higher_is_better": better.get(task, {}).get(metric),
                    "values": _values([row[metric] for row in own]),
                }
        found[task] = {
            "requests": _KIND.get(kinds[task], kinds[task]),
            "n": len({row["doc_id"] for row in rows}),
            "version": _version(results, task),
            "questions_digest": _digest(rows),
            "metrics": metrics,
        }
    return found


def _version(results: Mapping[str, Any], task: str) -> Any:
    found = results.get("versions", {}).get(task)
    # What lm-eval says of a task whose file names no version.
    return None if found == "Yaml" else found


def _digest(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a digest of questions, prompts and answers, in order; None if samples have no hashes."""
    names = ("doc_hash", "prompt_hash", "target_hash")
    asked = {row["doc_id"]: [row.get(name) for name in names] for row in rows}
    hashes: list[Any] = [one for index in sorted(asked) for one in asked[index]]
    return None if None in hashes else texts_digest(hashes)


def compare_tasks(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cases with each metric's difference from ``off`` at the same batch size.

    The questions are the same, so the differences are paired. If in all cases each question is either right
    or wrong, the difference is one of shares (Newcombe, method 10); otherwise it is the mean difference of a
    question's value, or of its sum per unit of weight (Student's t). It is None for ``off``, where lm-eval's
    samples hold no numbers, and where nothing was re-routed: there it would say nothing.

    Args:
        cases: As measured: ``tasks`` from `task_results`, and ``requests`` with ``nothing_changed`` by kind.
    """
    base = {case["batch_size"]: case["tasks"] for case in cases if case["setting"] == "off"}
    counted: dict[tuple[str, str], bool] = {}
    for case in cases:
        for name, task in case["tasks"].items():
            for metric, found in task["metrics"].items():
                counted[name, metric] = counted.get((name, metric), True) and _counts(found["values"])
    done = []
    for case in cases:
        tasks = {}
        for name, task in case["tasks"].items():
            before = base[case["batch_size"]][name]["metrics"]
            same = (
                case["setting"] == "off" or case["requests"][task["requests"]]["nothing_changed"] is not None
            )
            metrics = {
                metric: _compared(found, None if same else before[metric]["values"], counted[name, metric])
                for metric, found in task["metrics"].items()
            }
            tasks[name] = task | {"metrics": metrics}
        done.append(case | {"tasks": tasks})
    return done


def meaning(metric: str, found: Mapping[str, Any]) -> str | None:
    """Return the unit of a metric's difference from off and which sign is worse, where a reader could err.

    Args:
        metric: lm-eval's name, with or without its filter.
        found: The metric of a case, as `compare_tasks` returns it.

    Returns:
        E.g. ``"log-likelihood per word; below 0 is worse"``, where lm-eval's value itself is a perplexity.
        None where a question is right or wrong and right is better, and where nobody says what is better.
    """
    values = found.get("values")
    per = _LOG_LIKELIHOOD_PER.get(metric.partition(",")[0])
    if per is not None:
        return f"log-likelihood per {per}; below 0 is worse"
    paired = values is not None and any(isinstance(one, list) for one in values)
    unit = "a question's sum per unit of its weight" if paired else "mean of a question's value"
    better = found.get("higher_is_better")
    if found["right_or_wrong"]:
        return "share of the questions; above 0 is worse" if better is False else None
    if better is None:
        return unit if paired else None
    return f"{unit}; {'below' if better else 'above'} 0 is worse"


def _counts(values: Sequence[Any] | None) -> bool:
    """Whether each question is right or wrong."""
    return values is not None and set(map(type, values)) == {int}


def _compared(found: Mapping[str, Any], before: Sequence[Any] | None, counted: bool) -> dict[str, Any]:
    """Return a metric with its interval and its difference, each None where there is none.

    Args:
        found: The metric.
        before: Its values for off, or None.
        counted: Whether each question is right or wrong, in all cases.
    """
    values = found["values"]
    interval = asdict(wilson(sum(values), len(values))) if counted else None
    difference = None
    if values is not None and before is not None:
        if counted:
            difference = asdict(paired_difference([v == 1 for v in values], [v == 1 for v in before]))
        else:
            parts = [_weighed(one) for one in values]
            others = [_weighed(one) for one in before]
            sums = [a - b for (a, _), (b, _) in zip(parts, others, strict=True)]
            difference = asdict(mean_per_token(sums, [weight for _, weight in parts]))
    return dict(found) | {"interval": interval, "difference": difference, "right_or_wrong": counted}


def _weighed(value: Any) -> tuple[float, int]:
    return (value[0], value[1]) if isinstance(value, list) else (value, 1)


def _values(given: Sequence[Any]) -> list[Any] | None:
    """Return the questions' values: 0 and 1 if all are, else numbers, or pairs of sum and weight, or None."""
    if all(isinstance(one, list | tuple) and len(one) == 2 for one in given):
        pairs = [(_number(total), _number(weight)) for total, weight in given]
        good = all(total is not None and weight is not None and weight >= 1 for total, weight in pairs)
        return [[total, int(weight or 1)] for total, weight in pairs] if good else None
    numbers = [_number(one) for one in given]
    if any(one is None for one in numbers):
        return None
    return [int(one or 0) for one in numbers] if set(numbers) <= {0.0, 1.0} else numbers


def _number(value: Any) -> float | None:
    """Return a finite number of any type as a float, or None."""
    return float(value) if isinstance(value, Real) and isfinite(value) else None
