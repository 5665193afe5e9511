"""Intervals over rounds: how often they hold the truth, how wide they are, and what too few rounds give."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import pi, sqrt
from random import Random
from statistics import fmean, median

import pytest

from sere.errors import InputError
from sere.eval.statistics.by_round import bootstrap, median_ratio


@pytest.mark.parametrize(
    ("statistic", "wider"), [(fmean, 1.0), (median, sqrt(pi / 2))], ids=["mean", "median"]
)
def test_the_interval_is_as_wide_as_in_theory(
    statistic: Callable[[Sequence[float]], float], wider: float
) -> None:
    """Of 40 samples of 20 rounds, nearly all hold the truth, and the width is that of the normal theory."""
    chance, truth, sigma, rounds = Random(1), 0.99, 0.02, 20
    found = [bootstrap([chance.gauss(truth, sigma) for _ in range(rounds)], statistic) for _ in range(40)]
    assert sum(low <= truth <= high for low, high in found) >= 34
    width = fmean(high - low for low, high in found)
    assert width == pytest.approx(2 * 1.96 * wider * sigma / sqrt(rounds), rel=0.15)


def test_equal_rounds_leave_no_doubt() -> None:
    """The interval has no width; of other rounds, a lower confidence gives a narrower one."""
    assert bootstrap([0.5] * 8) == (0.5, 0.5)
    values = [1.0, 2.0, 4.0, 3.0]
    (low, high), (lower, higher) = bootstrap(values, confidence=0.5), bootstrap(values)
    assert lower < low < fmean(values) < high < higher
    assert bootstrap(values) == (lower, higher)


def test_ratios_are_taken_round_by_round() -> None:
    """A machine whose speed changes from round to round changes no ratio."""
    found = median_ratio([99.0, 49.5, 198.0], [100.0, 50.0, 200.0])
    assert (found.value, found.low, found.high) == pytest.approx((0.99, 0.99, 0.99))


def test_a_single_round_has_no_interval() -> None:
    """It says nothing of how far rounds scatter."""
    assert median_ratio([9.0], [10.0]).low is None
    with pytest.raises(InputError, match="expected at least 2 values, got 1"):
        bootstrap([1.0])


@pytest.mark.parametrize(("above", "below"), [([], []), ([1.0], [1.0, 2.0])], ids=["none", "lengths"])
def test_rounds_that_do_not_fit_are_refused(above: list[float], below: list[float]) -> None:
    """Both must have been measured in each round."""
    said = f"got {len(above)} and {len(below)}"
    with pytest.raises(InputError, match=re.escape(said)):
        median_ratio(above, below)
