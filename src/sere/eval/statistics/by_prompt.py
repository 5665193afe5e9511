"""Estimates over prompts whose tokens are not independent: a prompt is the unit, a token is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import cos, exp, log, pi, sin, sqrt, tan

from sere.errors import InputError
from sere.eval.statistics.by_question import normal_bound, score_interval

# From so many degrees of freedom on, Student's t and the normal distribution agree in four digits.
_MANY = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value per token with its confidence interval; the bounds are None if there is only one prompt."""

    value: float
    low: float | None
    high: float | None


def mean_per_token(totals: Sequence[float], tokens: Sequence[int], *, confidence: float = 0.95) -> Estimate:
    """Return the mean of a value per token, with an interval by the variance between prompts.

    The ratio of two sums over prompts, with the linearized variance between prompts (the sample) and
    Student's t with one degree of freedom less than there are prompts.

    Args:
        totals: Per prompt, the sum of the value over its tokens.
        tokens: Per prompt, how many tokens that is, at least 1.
        confidence: Of the two-sided interval.

    Raises:
        InputError: There is no prompt, or the two have different lengths.

    Source: Cochran (1977), Sampling Techniques, 3rd edition, chapters 6 (ratio estimators) and 9A (clusters
        of unequal sizes).
    """
    ratio, error = mean_and_error(totals, tokens)
    if error is None:
        return Estimate(ratio, None, None)
    half = student_t(len(tokens) - 1, confidence) * error
    return Estimate(ratio, ratio - half, ratio + half)


def positive_mean_per_token(
    totals: Sequence[float], tokens: Sequence[int], *, confidence: float = 0.95
) -> Estimate:
    """Return the mean of a value that is never negative, such as a divergence, with an interval.

    Such values are skewed: a few prompts hold most of the sum. The interval is made on a log scale, so it
    reaches further up than down and covers the mean more often
    (``tests/eval/statistics/test_by_prompt.py`` counts).

    Args:
        totals: As for `mean_per_token`, like the other arguments.
        tokens: As for `mean_per_token`.
        confidence: As for `mean_per_token`.

    Raises:
        InputError: There is no prompt, or the two have different lengths.
    """
    ratio, error = mean_and_error(totals, tokens)
    if error is None:
        return Estimate(ratio, None, None)
    if ratio <= 0:
        return Estimate(ratio, ratio, ratio)
    half = student_t(len(tokens) - 1, confidence) * error / ratio
    # A finite number even for two prompts that say little, because records hold no infinities.
    return Estimate(ratio, ratio * exp(-half), ratio * exp(min(half, 500.0)))


def share_of_tokens(hits: Sequence[int], tokens: Sequence[int], *, confidence: float = 0.95) -> Estimate:
    """Return a share of tokens with Wilson's interval at the effective number of tokens.

    The effective number is how many independent tokens would give the variance observed between prompts,
    reduced if few prompts make this variance uncertain. Wilson's interval keeps a width if the share is 0 or
    1; then all tokens count.

    Args:
        hits: Per prompt, how many of its tokens count.
        tokens: Per prompt, how many tokens it has, at least 1.
        confidence: Of the two-sided interval.

    Raises:
        InputError: There is no prompt, or the two have different lengths.

    Source: Korn and Graubard (1998), Survey Methodology 24, 193 (effective sample size and its correction for
        the degrees of freedom); Wilson (1927).
    """
    share, error = mean_and_error(hits, tokens)
    if error is None:
        return Estimate(share, None, None)
    n = float(sum(tokens))
    if error > 0:
        n = min(n, share * (1 - share) / error**2)
    z = normal_bound(confidence)
    found = score_interval(share, n * (z / student_t(len(tokens) - 1, confidence)) ** 2, z)
    return Estimate(share, found.low, found.high)


@lru_cache(maxsize=64)
def student_t(freedom: int, confidence: float = 0.95) -> float:
    """Return the bound that Student's t stays within with probability ``confidence``.

    Args:
        freedom: Degrees of freedom, at least 1.
        confidence: Two-sided, between 0 and 1.

    Source: Abramowitz and Stegun (1964), 26.7.3 and 26.7.4, solved by bisection.
    """
    if freedom > _MANY:
        return normal_bound(confidence)
    low, high = 0.0, pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return tan((low + high) / 2) * sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """Return the probability that Student's t is within ``tan(angle) * sqrt(freedom)`` of 0."""
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cos(angle) ** 2 * (k - 1) / k
        total += term
    return (angle + sin(angle) * total) * 2 / pi if odd else sin(angle) * total


def mean_and_error(totals: Sequence[float], tokens: Sequence[int]) -> tuple[float, float | None]:
    """Return the mean of a value per token and its standard error, which is None for one prompt.

    Args:
        totals: As for `mean_per_token`, like the other argument.
        tokens: As for `mean_per_token`.

    Raises:
        InputError: There is no prompt, or the two have different lengths.
    """
    m = len(tokens)
    if len(totals) != m or not m or min(tokens) < 1:
        raise InputError(
            f"estimate: expected a sum and at least 1 token for each prompt, got {len(totals)} sums for {m}"
        )
    n = sum(tokens)
    ratio = sum(totals) / n
    if m == 1:
        return ratio, None
    spread = sum((total - ratio * size) ** 2 for total, size in zip(totals, tokens, strict=True))
    return ratio, sqrt(spread * m / (m - 1)) / n


def ratio_of_means(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], *, confidence: float = 0.95
) -> Estimate:
    """Return the geometric mean of ratios of sums over the same prompts, with an interval on a log scale.

    Args:
        pairs: Sums per prompt above and below, for each ratio; all over the same prompts in the same order.
        confidence: Of the two-sided interval.

    Returns:
        The mean ratio; without bounds for one prompt.

    Raises:
        InputError: There is no pair, or a sum is not positive, so that there is no ratio.
    """
    sums = [(sum(above), sum(below)) for above, below in pairs]
    if not sums or min(min(pair) for pair in sums) <= 0:
        raise InputError(f"estimate: expected positive sums, got {sums[:10]}")
    m, count = len(pairs[0][0]), len(sums)
    middle = sum(log(above / below) for above, below in sums) / count
    if m == 1:
        return Estimate(exp(middle), None, None)
    # What each prompt adds to the mean of the logarithms, linearized; the sum over the prompts is 0.
    parts = [
        sum(a[i] / A - b[i] / B for (a, b), (A, B) in zip(pairs, sums, strict=True)) / count for i in range(m)
    ]
    half = student_t(m - 1, confidence) * sqrt(sum(part**2 for part in parts) * m / (m - 1))
    half = min(half, 500.0)  # a finite bound, because records hold no infinities
    return Estimate(exp(middle), exp(middle - half), exp(middle + half))
