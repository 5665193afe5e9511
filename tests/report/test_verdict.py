"""Which setting may be advised."""

from __future__ import annotations

from math import inf

import pytest

from sere.report.cases import Key, Quality
from sere.report.verdict import (
    ACCEPTED_KL,
    ACCEPTED_POINTS,
    Asked,
    Cost,
    asked_by_eval,
    judge,
    what_says_most,
)
from sere.tune.plan import TIERS, TIERS_BY_ANSWERS


def cost(after: float, value: float, low: float, high: float, *, count: int = 500, rows: int = 16) -> Cost:
    """A setting's cost in right answers, as shares."""
    change = {"value": value, "low": low, "high": high}
    return Cost(f"sere:active_experts={after:.0f}", rows, 40.0, after, count, "right", change)


def divergence(after: float, value: float, high: float | None) -> Cost:
    change = {"value": value, "low": None if high is None else 0.0, "high": high}
    return Cost(f"sere:active_experts={after:.0f}", 16, 40.0, after, 8, "kl", change)


def test_the_limits_are_those_of_the_balanced_tier() -> None:
    """Whether one tunes or reads a report."""
    assert TIERS["balanced"].value == ACCEPTED_KL
    assert TIERS_BY_ANSWERS["balanced"].value == ACCEPTED_POINTS


@pytest.mark.parametrize(
    ("value", "low", "high", "kind"),
    [
        (0.0, -0.0099, 0.0099, "accepted"),
        # A loss that is certain, and small.
        (-0.005, -0.009, -0.001, "accepted"),
        (0.0, -0.011, 0.011, "open"),
        # It may gain, and it may lose more than is accepted.
        (0.02, -0.02, 0.06, "open"),
        # Its interval contains 0, too.
        (-0.014, -0.03, 0.0001, "lost"),
        (-0.014, -0.03, 0.0, "lost"),
        (-0.4, -0.42, -0.38, "lost"),
        # Exactly the limit, as a difference of shares has it.
        (0.0, 0.89 - 0.9, 0.01, "accepted"),
    ],
)
def test_a_setting_is_advised_by_the_loss_that_its_interval_allows(
    value: float, low: float, high: float, kind: str
) -> None:
    """Not because its interval contains 0, which that of few questions always does."""
    assert judge([cost(24, value, low, high)]).kind == kind


@pytest.mark.parametrize(
    ("value", "high", "kind"),
    [(0.001, 0.0019, "accepted"), (0.001, 0.003, "open"), (0.003, 0.004, "lost"), (0.001, None, "open")],
)
def test_a_divergence_is_judged_by_its_upper_bound(value: float, high: float | None, kind: str) -> None:
    """A single prompt has none, so nothing bounds what others would show."""
    assert judge([divergence(24, value, high)]).kind == kind
    assert divergence(24, value, None).most_lost == inf


def test_the_fewest_experts_of_those_that_are_accepted() -> None:
    """And among how many settings it was chosen, whatever became of the others."""
    good = [cost(30, 0.0, -0.005, 0.005), cost(24, 0.0, -0.008, 0.008)]
    verdict = judge([*good, cost(20, 0.0, -0.02, 0.02), cost(12, -0.4, -0.42, -0.38)])
    assert (verdict.cost.after, verdict.kind, verdict.tried) == (24, "accepted", 4)


def test_without_one_the_nearest_is_named() -> None:
    """First what more questions may settle, then what lost the least."""
    unsure, worse = cost(30, -0.008, -0.024, 0.007), cost(12, -0.012, -0.02, -0.004)
    assert (judge([worse, unsure]).cost, judge([worse, unsure]).kind) == (unsure, "open")
    bad = cost(8, -0.5, -0.52, -0.48)
    assert (judge([bad, worse]).cost, judge([bad, worse]).kind) == (worse, "lost")


def test_only_what_was_asked_the_same_is_compared() -> None:
    """The most questions, then the largest steps, of one group."""
    groups = [
        Asked([cost(10, 0.0, -0.001, 0.001, count=100)]),
        Asked([cost(20, 0.0, -0.02, 0.02, rows=8), cost(30, 0.0, -0.02, 0.02), cost(31, 0.0, -0.02, 0.02)]),
        Asked([]),
    ]
    found = what_says_most(groups)
    assert found is not None
    assert [one.after for one in found.costs] == [30, 31]
    assert what_says_most([Asked([])]) is None


def test_only_settings_of_sere_that_re_routed_are_judged() -> None:
    """Not the rules to compare with, and not one whose steps were those of the unmodified model."""
    key, lost = Key("m", "t", "c", "w"), {"value": 0.0, "low": -0.001, "high": 0.001}

    def quality(setting: str, note: str | None = None) -> Quality:
        right = {"value": 0.9, "low": 0.8, "high": 1.0}
        return Quality("f", key, setting, 16, 40.0, 20.0, {}, "right", right, lost, count=50, note=note)

    group = [quality("off"), quality("drop"), quality("sere", "nothing"), quality("sere:active_experts=20")]
    assert [one.setting for one in asked_by_eval(group).costs] == ["sere:active_experts=20"]
