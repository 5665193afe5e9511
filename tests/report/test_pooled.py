"""Tasks of lm-eval taken together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sere.eval.statistics.by_question import paired_difference
from sere.report.cases import Key, Scored
from sere.report.pooled import command, pool

RUN = Key("m", "lm-eval 0.4.13, seed 0", "c", "w")
LOST = {"value": -0.02, "low": -0.06, "high": 0.01}


def scored(task: str, count: int, change: Mapping[str, float] | None = None, **values: Any) -> Scored:
    """A score of a setting of sere at 16 rows."""
    known: dict[str, Any] = {
        "source": "f", "key": replace(RUN, texts=f"{task}, {count}, {RUN.texts}"), "run": RUN,
        "setting": "sere", "batch_size": 16, "task": task, "metric": "acc", "count": count, "value": None,
        "difference": LOST if change is None else change, "right_or_wrong": True, "before": 40.0,
        "after": 30.0, "rerouted": 0.2,
    }  # fmt: skip
    return Scored(**known | values)


def changes(*groups: Sequence[Scored]) -> list[list[tuple[str, int, float]]]:
    """By group: setting, questions and difference."""
    return [[(one.setting, one.count, one.change["value"] or 0.0) for one in asked.costs]
            for asked in pool(groups)]  # fmt: skip


def test_a_single_task_is_itself() -> None:
    """Its interval, its experts, its name."""
    (asked,) = pool([[scored("sums", 50)]])
    (one,) = asked.costs
    assert one.change == pytest.approx(LOST)
    assert (one.before, one.after, one.count, asked.where) == (40.0, 30.0, 50, " in sums")


def test_tasks_weigh_by_their_questions() -> None:
    """Values and experts; the distances to the bounds add up as squares."""
    other = scored("words", 300, {"value": 0.01, "low": -0.01, "high": 0.03}, after=10.0)
    (asked,) = pool([[scored("sums", 100)], [other]])
    (one,) = asked.costs
    assert one.change["value"] == pytest.approx((-2 + 3) / 400)
    assert one.change["low"] == pytest.approx(0.0025 - (4**2 + 6**2) ** 0.5 / 400)
    assert one.change["high"] == pytest.approx(0.0025 + (3**2 + 6**2) ** 0.5 / 400)
    assert (one.after, one.count, asked.where) == (15.0, 400, " in 2 tasks of lm-eval")


def test_it_is_about_the_interval_of_all_questions_as_one_task() -> None:
    """Of which each part is a sample: here every third is lost, and every fifth of these is won."""
    off = [index % 3 != 1 for index in range(600)]
    sere = [right and index % 15 != 2 for index, right in enumerate(off)]
    groups = []
    for name, part in (("sums", slice(0, 200)), ("words", slice(200, 600))):
        found = paired_difference(sere[part], off[part])
        change = {"value": found.value, "low": found.low, "high": found.high}
        groups.append([scored(name, len(off[part]), change)])
    (asked,) = pool(groups)
    whole = paired_difference(sere, off)
    assert asked.costs[0].change["value"] == pytest.approx(whole.value)
    assert asked.costs[0].change["low"] == pytest.approx(whole.low, abs=0.003)
    assert asked.costs[0].change["high"] == pytest.approx(whole.high, abs=0.003)


def test_what_is_better_when_lower_is_turned() -> None:
    """A share of toxic answers that grew is a loss."""
    ((one,),) = [asked.costs for asked in pool([[scored("toxic", 50, lower_is_better=True)]])]
    assert one.change == pytest.approx({"value": 0.02, "low": -0.01, "high": 0.06})


def test_what_has_no_answers_to_count_is_left_out() -> None:
    """Perplexities, off, other rules, and what re-routed nothing."""
    left_out = [
        scored("prose", 8, right_or_wrong=False),
        scored("sums", 50, setting="off", difference=None),
        scored("sums", 50, setting="drop"),
        scored("sums", 50, before=None, after=None),
    ]
    assert pool([left_out]) == []


def test_of_a_task_the_first_metric_and_the_most_questions_count() -> None:
    """Not both, of which one is a part of the other."""
    few = {"value": 0.5, "low": 0.4, "high": 0.6}
    first, second = scored("sums", 50), scored("sums", 50, few, metric="acc_norm")
    assert changes([first, second], [scored("sums", 20, few)]) == [[("sere", 50, pytest.approx(-0.02))]]


def test_settings_measured_on_other_tasks_are_not_compared() -> None:
    """Those of the same tasks of one run are."""
    more = scored("sums", 50, setting="sere:active_experts=30")
    both = [scored("sums", 50), scored("words", 50)]
    assert [len(group) for group in changes([*both, more])] == [1, 1]
    assert [len(group) for group in changes([scored("sums", 50), more])] == [2]
    other = scored("sums", 60, setting="sere:active_experts=30", run=replace(RUN, texts="other"))
    assert [len(group) for group in changes([scored("sums", 50), other])] == [1, 1]


def test_the_command_asks_in_the_same_way() -> None:
    """Of many tasks, a placeholder."""
    one = scored("sums", 50, options=" --phases decode --num-fewshot 2")
    assert command(one, ("a b", "c")) == (
        "sere lm-eval MODEL --tasks 'a b' c --phases decode --num-fewshot 2"
    )
    assert (
        command(one, "abcd")
        == command(one, ())
        == ("sere lm-eval MODEL --tasks TASKS --phases decode --num-fewshot 2")
    )
