"""Estimates over the rounds of a timing, in each of which everything that is compared took its turn."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, isfinite
from random import Random
from statistics import fmean, median

from sere.errors import InputError
from sere.eval.statistics.by_prompt import Estimate

DRAWS = 4000
LEAST_ROUNDS = 6
"""Fewer rounds say too little of how far they scatter: no interval of theirs at 95 % holds what it says."""


def bootstrap(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean, by drawing as many values as there are, with replacement.

    The interval holds the middle share of what `DRAWS` draws give (percentile bootstrap). The draws are
    always the same ones, so that equal values have equal intervals. It is somewhat too narrow for few values:
    of 6 values that scatter normally it holds the truth in about 88 of 100 cases, of 20 in 94.

    Args:
        values: One of each round; finite, at least `LEAST_ROUNDS`.
        confidence: Of the two-sided interval, between 0 and 1.

    Raises:
        InputError: There are fewer values, one is not finite, or the confidence is not between 0 and 1.

    Source: Efron (1979), The Annals of Statistics 7, 1; Efron and Tibshirani (1993), An Introduction to the
        Bootstrap, chapter 13 (percentile intervals).
    """
    if len(values) < LEAST_ROUNDS:
        raise InputError(f"bootstrap: expected at least {LEAST_ROUNDS} values, got {len(values)}")
    _check("bootstrap", values, confidence)
    chance = Random(0)
    found = sorted(fmean(chance.choices(values, k=len(values))) for _ in range(DRAWS))
    beyond = min(round(DRAWS * (1 - confidence) / 2), DRAWS // 2 - 1)
    return found[beyond], found[-1 - beyond]


def median_of(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Return the median of the rounds' values, with an interval between two of them.

    The k-th smallest value and the k-th largest, with the largest k at which the two hold the median of what
    the rounds were drawn from in at least that share of cases, whatever its distribution (the interval of the
    sign test). With 10 rounds and 95 %, that is the 2nd and the 9th value.

    Args:
        values: One of each round; finite.
        confidence: Of the two-sided interval, between 0 and 1: at least so much.

    Returns:
        The median; without bounds where even the smallest and the largest value hold it too seldom, which at
        95 % is for fewer than `LEAST_ROUNDS` rounds.

    Raises:
        InputError: There is no round, a value is not finite, or the confidence is not between 0 and 1.

    Source: David and Nagaraja (2003), Order Statistics, 3rd edition, section 7.1.
    """
    if not values:
        raise InputError("median_of: expected at least 1 round, got 0")
    _check("median_of", values, confidence)
    found, count = sorted(values), len(values)
    # What lies beyond the k-th value of both ends, with k one more each time.
    k, beyond = 0, 2 * (1 / 2**count)
    while k < count // 2 and beyond <= 1 - confidence:
        k += 1
        beyond += 2 * (comb(count, k) / 2**count)
    if k == 0:
        return Estimate(median(found), None, None)
    return Estimate(median(found), found[k - 1], found[-k])


def median_ratio(above: Sequence[float], below: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Return the median of the rounds' ratios, with its interval as `median_of` takes it.

    Args:
        above: Of each round, what stands above, such as tokens per second of one setting; finite.
        below: Of each round, what it is compared with; above 0.
        confidence: Of the two-sided interval, between 0 and 1: at least so much.

    Returns:
        The ratio; without bounds for too few rounds.

    Raises:
        InputError: There is no round, the two have different lengths, a value below is not above 0, one is
            not finite, or the confidence is not between 0 and 1.
    """
    if len(above) != len(below) or not above:
        raise InputError(
            f"median_ratio: expected equal numbers of rounds, at least 1, got {len(above)} and {len(below)}"
        )
    for one in below:
        if not (isfinite(one) and one > 0):
            raise InputError(f"median_ratio: expected finite numbers above 0 to compare with, got {one}")
    return median_of([one / other for one, other in zip(above, below, strict=True)], confidence=confidence)


def _check(who: str, values: Sequence[float], confidence: float) -> None:
    """Refuse values that have no order, and a confidence that is none."""
    if not 0 < confidence < 1:
        raise InputError(f"{who}: expected a confidence between 0 and 1, got {confidence}")
    for one in values:
        if not isfinite(one):
            raise InputError(f"{who}: expected finite numbers, got {one}")
