"""Intervals over rounds: how often they hold the truth, how wide they are, and what too few rounds give."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf, log, nan, sqrt
from random import Random
from statistics import fmean
from typing import Any

import pytest

from sere.errors import InputError
from sere.eval.statistics.by_round import LEAST_ROUNDS, bootstrap, median_of, median_ratio


def test_the_interval_of_a_mean_is_as_wide_as_in_theory() -> None:
    """Of 40 samples of 20 rounds, nearly all hold the truth, and the width is that of the normal theory."""
    chance, truth, sigma, rounds = Random(1), 0.99, 0.02, 20
    found = [bootstrap([chance.gauss(truth, sigma) for _ in range(rounds)]) for _ in range(40)]
    assert sum(low <= truth <= high for low, high in found) >= 34
    width = fmean(high - low for low, high in found)
    assert width == pytest.approx(2 * 1.96 * sigma / sqrt(rounds), rel=0.15)


def test_equal_rounds_leave_no_doubt() -> None:
    """The interval has no width; of other rounds, a lower confidence gives a narrower one."""
    assert bootstrap([0.5] * 8) == (0.5, 0.5)
    values = [1.0, 2.0, 4.0, 3.0, 2.5, 1.5]
    (low, high), (lower, higher) = bootstrap(values, confidence=0.5), bootstrap(values)
    assert lower < low < fmean(values) < high < higher
    assert bootstrap(values) == (lower, higher)
    middle = bootstrap(values, confidence=1e-9)
    assert low < middle[0] <= middle[1] < high


@pytest.mark.parametrize(
    ("rounds", "kth"), [(5, None), (6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (100, 40), (2000, 956)]
)
def test_the_interval_of_a_median_is_that_of_the_sign_test(rounds: int, kth: int | None) -> None:
    """From the k-th smallest to the k-th largest value, in whatever order they came; none below six."""
    values = [float(one) for one in range(1, rounds + 1)]
    Random(0).shuffle(values)
    found = median_of(values)
    bounds = (None, None) if kth is None else (kth, rounds + 1 - kth)
    assert (found.value, found.low, found.high) == ((rounds + 1) / 2, *bounds)


@pytest.mark.parametrize("rounds", [LEAST_ROUNDS, 7, 10, 25])
def test_the_interval_of_a_median_holds_it_as_often_as_it_says(rounds: int) -> None:
    """In at least 95 % of 2,000 samples, also of values that scatter to one side."""
    chance, truth = Random(rounds), log(2)
    found = [median_of([chance.expovariate(1.0) for _ in range(rounds)]) for _ in range(2000)]
    assert sum(one.low <= truth <= one.high for one in found if one.low and one.high) >= 0.95 * len(found)


def test_ratios_are_taken_round_by_round() -> None:
    """A machine whose speed changes from round to round changes no ratio."""
    found = median_ratio([99.0, 49.5, 198.0] * 2, [100.0, 50.0, 200.0] * 2)
    assert (found.value, found.low, found.high) == pytest.approx((0.99, 0.99, 0.99))


@pytest.mark.parametrize("rounds", [1, 2, LEAST_ROUNDS - 1])
def test_few_rounds_have_no_interval(rounds: int) -> None:
    """They say too little of how far rounds scatter."""
    found = median_ratio([9.0, 8.0, 7.0, 6.0, 5.0][:rounds], [10.0] * rounds)
    assert (found.low, found.high) == (None, None)
    with pytest.raises(InputError, match=f"expected at least 6 values, got {rounds}"):
        bootstrap([1.0] * rounds)


@pytest.mark.parametrize(("above", "below"), [([], []), ([1.0], [1.0, 2.0])], ids=["none", "lengths"])
def test_rounds_that_do_not_fit_are_refused(above: list[float], below: list[float]) -> None:
    """Both must have been measured in each round."""
    said = f"got {len(above)} and {len(below)}"
    with pytest.raises(InputError, match=re.escape(said)):
        median_ratio(above, below)


@pytest.mark.parametrize("of", [bootstrap, median_of], ids=["mean", "median"])
@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 95, nan])
def test_a_confidence_is_between_0_and_1(of: Callable[..., Any], confidence: float) -> None:
    """Not a percentage."""
    with pytest.raises(InputError, match=f"expected a confidence between 0 and 1, got {confidence}"):
        of([1.0, 2.0] * 4, confidence=confidence)


@pytest.mark.parametrize("of", [bootstrap, median_of], ids=["mean", "median"])
@pytest.mark.parametrize("value", [nan, inf])
def test_values_have_an_order(of: Callable[..., Any], value: float) -> None:
    """NaN has none, and infinity no mean."""
    with pytest.raises(InputError, match=f"expected finite numbers, got {value}"):
        of([1.0] * 7 + [value])


@pytest.mark.parametrize("value", [0.0, -1.0, nan])
def test_a_ratio_is_to_something_above_0(value: float) -> None:
    """No division by 0."""
    with pytest.raises(InputError, match=f"expected finite numbers above 0 to compare with, got {value}"):
        median_ratio([1.0, 1.0], [1.0, value])
