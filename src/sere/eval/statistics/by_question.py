"""Confidence intervals for shares of right answers, alone and paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from sere.errors import InputError


@dataclass(frozen=True, slots=True)
class Interval:
    """A share or a difference of shares with its confidence interval, all in [-1, 1]."""

    value: float
    low: float
    high: float


def wilson(right: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Return the share ``right / n`` with Wilson's score interval.

    Args:
        right: Number of successes.
        n: Number of trials, at least 1.
        confidence: Of the two-sided interval.

    Raises:
        InputError: ``n`` is not positive or ``right`` is outside [0, n].

    Source: Wilson (1927), Journal of the American Statistical Association 22.
    """
    if n < 1 or not 0 <= right <= n:
        raise InputError(f"wilson: expected 0 <= right <= n and n >= 1, got right={right}, n={n}")
    return score_interval(right / n, n, normal_bound(confidence))


def normal_bound(confidence: float) -> float:
    """Return the bound that the normal distribution stays within with probability ``confidence``."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def score_interval(share: float, n: float, z: float) -> Interval:
    """Return Wilson's interval of a share that was observed in ``n`` trials; ``n`` may be fractional.

    Args:
        share: In [0, 1].
        n: Independent trials, or the effective number of dependent ones.
        z: The normal distribution's quantile of the wanted confidence.
    """
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and 1 the bound equals the share exactly; rounding must not push it past.
    return Interval(share, min(share, max(0.0, center - half)), max(share, min(1.0, center + half)))


def paired_difference(after: Sequence[bool], before: Sequence[bool], *, confidence: float = 0.95) -> Interval:
    """Return the difference of two shares measured on the same questions, with Newcombe's interval.

    Both methods answered the same questions, so only the questions on which they differ count.
    Newcombe's method 10 combines the two Wilson intervals with the correlation of the pairs; unlike
    the bootstrap it needs no draws, and unlike McNemar's it holds where few questions differ.

    Args:
        after: Per question, whether the setting was right.
        before: The same for the method it is compared with, in the same order.
        confidence: Of the two-sided interval.

    Raises:
        InputError: The two are empty or of different lengths.

    Source: Newcombe (1998), Statistics in Medicine 17, 2635, method 10.
    """
    if len(after) != len(before) or not after:
        raise InputError(
            f"paired_difference: expected equal lengths of at least 1, got {len(after)} and {len(before)}"
        )
    n = len(after)
    a, b = wilson(sum(after), n, confidence=confidence), wilson(sum(before), n, confidence=confidence)
    phi = _correlation(after, before)
    down_a, up_a, down_b, up_b = a.value - a.low, a.high - a.value, b.value - b.low, b.high - b.value
    difference = a.value - b.value
    low = sqrt(max(0.0, down_a**2 - 2 * phi * down_a * up_b + up_b**2))
    high = sqrt(max(0.0, up_a**2 - 2 * phi * up_a * down_b + down_b**2))
    return Interval(difference, max(-1.0, difference - low), min(1.0, difference + high))


def _correlation(after: Sequence[bool], before: Sequence[bool]) -> float:
    """Return Newcombe's φ: the pairs' correlation, with a continuity correction where it is positive."""
    pairs = list(zip(after, before, strict=True))
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    gained, lost = pairs.count((True, False)), pairs.count((False, True))
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if product == 0:
        return 0.0
    excess = float(both * neither - gained * lost)
    if excess > 0:
        excess = max(excess - len(pairs) / 2, 0.0)
    return excess / sqrt(product)
