"""Estimates over the rounds of a timing, in each of which everything that is compared took its turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from statistics import fmean, median

from sere.errors import InputError
from sere.eval.statistics.by_prompt import Estimate

DRAWS = 4000


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = fmean,
    *,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the interval of a statistic, by drawing as many values as there are, with replacement.

    The interval holds the middle share of what `DRAWS` draws give (percentile bootstrap). The draws are
    always the same ones, so that equal values have equal intervals.

    Args:
        values: One of each round; at least two, because one alone says nothing of how far they scatter.
        statistic: What is estimated, e.g. the mean or the median.
        confidence: Of the two-sided interval.

    Raises:
        InputError: There are fewer than two values.

    Source: Efron (1979), The Annals of Statistics 7, 1; Efron and Tibshirani (1993), An Introduction to the
        Bootstrap, chapter 13 (percentile intervals).
    """
    if len(values) < 2:
        raise InputError(f"bootstrap: expected at least 2 values, got {len(values)}")
    chance = Random(0)
    found = sorted(statistic(chance.choices(values, k=len(values))) for _ in range(DRAWS))
    beyond = round(DRAWS * (1 - confidence) / 2)
    return found[beyond], found[-1 - beyond]


def median_of(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Return the median of the rounds' values, with its interval by `bootstrap`.

    Args:
        values: One of each round.
        confidence: Of the two-sided interval.

    Returns:
        The median; without bounds for a single round.

    Raises:
        InputError: There is no round.
    """
    if not values:
        raise InputError("median_of: expected at least 1 round, got 0")
    if len(values) == 1:
        return Estimate(values[0], None, None)
    return Estimate(median(values), *bootstrap(values, median, confidence=confidence))


def median_ratio(above: Sequence[float], below: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Return the median of the rounds' ratios, with its interval by `bootstrap`.

    Args:
        above: Of each round, what stands above, such as tokens per second of one setting; above 0.
        below: Of each round, what it is compared with; above 0.
        confidence: Of the two-sided interval.

    Returns:
        The ratio; without bounds for a single round.

    Raises:
        InputError: There is no round, or the two have different lengths.
    """
    if len(above) != len(below) or not above:
        raise InputError(
            f"median_ratio: expected equal numbers of rounds, at least 1, got {len(above)} and {len(below)}"
        )
    return median_of([one / other for one, other in zip(above, below, strict=True)], confidence=confidence)
