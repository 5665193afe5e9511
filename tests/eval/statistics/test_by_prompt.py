"""Intervals over prompts cover the truth as often as they say, and tokens of a prompt are not independent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log
from random import Random
from statistics import fmean

import pytest

from sere.errors import InputError
from sere.eval.statistics.by_prompt import (
    Estimate,
    mean_per_token,
    positive_mean_per_token,
    ratio_of_means,
    share_of_tokens,
    student_t,
)
from sere.eval.statistics.by_question import wilson


@pytest.mark.parametrize(
    ("freedom", "bound"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227), (120, 1.97993)],
)
def test_students_t_is_that_of_the_tables(freedom: int, bound: float) -> None:
    """The two-sided 95 % bounds, for odd and even degrees of freedom, and the normal one for very many."""
    assert student_t(freedom) == pytest.approx(bound, abs=1e-5)
    assert student_t(20_000) == pytest.approx(1.95996, abs=1e-5)
    assert student_t(9, 0.99) == pytest.approx(3.24984, abs=1e-5)


def samples(prompts: int, spread: float, runs: int = 2000) -> Iterator[tuple[list[float], list[int]]]:
    """Draw prompts of 4 to 64 tokens whose values per token are log-normal between prompts, with mean 1."""
    draw = Random(5)
    for _ in range(runs):
        tokens = [draw.randint(4, 64) for _ in range(prompts)]
        yield [n * draw.lognormvariate(-(spread**2) / 2, spread) for n in tokens], tokens


def coverage(estimates: list[Estimate], truth: float) -> float:
    inside = [e.low <= truth <= e.high for e in estimates if e.low is not None and e.high is not None]
    return sum(inside) / len(estimates)


@pytest.mark.parametrize(("prompts", "spread", "least"), [(20, 0.5, 0.9), (50, 0.5, 0.92), (50, 1.0, 0.88)])
def test_divergences_are_covered(prompts: int, spread: float, least: float) -> None:
    """The log scale covers a mean that is a little skewed nearly as often as it says, a heavy tail less."""
    drawn = [positive_mean_per_token(*one) for one in samples(prompts, spread)]
    assert least <= coverage(drawn, 1) <= 0.98


def test_the_log_scale_covers_skewed_means_more_often() -> None:
    """Few prompts that hold most of the sum: a symmetric interval reaches up too little."""
    drawn = list(samples(20, 1.0))
    symmetric = coverage([mean_per_token(*one) for one in drawn], 1)
    assert coverage([positive_mean_per_token(*one) for one in drawn], 1) > symmetric + 0.02


def test_losses_are_covered() -> None:
    """A symmetric mean per token is inside in 95 % of samples, few prompts included."""
    draw, found = Random(6), []
    for _ in range(800):
        tokens = [draw.randint(4, 64) for _ in range(8)]
        found.append(mean_per_token([n * draw.gauss(2, 0.7) for n in tokens], tokens))
    assert 0.92 <= coverage(found, 2) <= 0.98


@pytest.mark.parametrize(("prompts", "least"), [(8, 0.9), (40, 0.93)])
def test_shares_of_dependent_tokens_are_covered(prompts: int, least: float) -> None:
    """Where a prompt's tokens agree together, the effective number covers the share; all tokens would not."""
    draw, mine, naive = Random(7), [], []
    for _ in range(600):
        tokens = [draw.randint(10, 60) for _ in range(prompts)]
        shares = [draw.betavariate(9, 1) for _ in tokens]
        hits = [sum(draw.random() < p for _ in range(n)) for n, p in zip(tokens, shares, strict=True)]
        mine.append(share_of_tokens(hits, tokens))
        alone = wilson(sum(hits), sum(tokens))
        naive.append(Estimate(alone.value, alone.low, alone.high))
    assert coverage(mine, 0.9) >= least
    assert coverage(naive, 0.9) < 0.8


def test_shares_of_independent_tokens_lose_little() -> None:
    """Where tokens are independent, the interval is about Wilson's over all tokens, and never narrower."""
    draw, ratios = Random(8), []
    for _ in range(100):
        hits = [sum(draw.random() < 0.9 for _ in range(40)) for _ in range(60)]
        mine, alone = share_of_tokens(hits, [40] * 60), wilson(sum(hits), 2400)
        assert mine.low is not None
        assert mine.high is not None
        assert mine.high - mine.low >= alone.high - alone.low
        ratios.append((mine.high - mine.low) / (alone.high - alone.low))
    assert sum(ratios) / len(ratios) < 1.15


def test_intervals_keep_a_width_where_all_agree() -> None:
    """All tokens right is no certainty: the interval has Wilson's width, wider for fewer prompts."""
    few, many = share_of_tokens([20] * 2, [20] * 2), share_of_tokens([2] * 20, [2] * 20)
    assert few.value == few.high == many.value == many.high == 1
    assert few.low is not None
    assert many.low is not None
    assert few.low < 0.4 < many.low < wilson(40, 40).low


@pytest.mark.parametrize("estimate", [mean_per_token, positive_mean_per_token, share_of_tokens])
def test_one_prompt_has_a_value_and_no_interval(estimate: Callable[..., Estimate]) -> None:
    """One observation says nothing of how far others are from it."""
    assert estimate([3], [4]) == Estimate(0.75, None, None)


def test_a_divergence_of_nothing_is_nothing() -> None:
    """Zero everywhere has no logarithm, and two prompts that say little still give numbers."""
    assert positive_mean_per_token([0.0, 0.0], [3, 4]) == Estimate(0.0, 0.0, 0.0)
    found = positive_mean_per_token([1e-12, 5.0], [3, 400])
    assert found.high is not None
    assert log(found.high) < 1000


@pytest.mark.parametrize(("totals", "tokens"), [([], []), ([1.0], [0]), ([1.0, 2.0], [3])])
def test_sums_must_fit_their_prompts(totals: list[float], tokens: list[int]) -> None:
    """No prompt, a prompt without tokens and sums of other prompts are refused."""
    with pytest.raises(InputError, match="estimate: expected a sum and at least 1 token for each prompt"):
        mean_per_token(totals, tokens)


def test_ratios_are_covered() -> None:
    """The mean of two ratios over the same prompts, whose losses rise and fall together, is paired."""
    draw = Random(11)
    found = []
    for _ in range(1000):
        size = [draw.lognormvariate(0, 1) for _ in range(60)]
        pairs = [
            (
                [scale * one * draw.lognormvariate(-0.02, 0.2) for one in size],
                [one * draw.lognormvariate(-0.02, 0.2) for one in size],
            )
            for scale in (0.8, 1.25)
        ]
        found.append(ratio_of_means(pairs))
    assert 0.92 <= coverage(found, 1.0) <= 0.98
    # Each sum alone is uncertain by a fifth or more; the ratio is not.
    assert fmean((one.high or 0.0) - (one.low or 0.0) for one in found) < 0.3


def test_ratios_need_positive_sums() -> None:
    """One prompt gives no interval, and where nothing was lost there is no ratio."""
    assert ratio_of_means([([2.0], [4.0]), ([2.0], [1.0])]) == Estimate(1.0, None, None)
    with pytest.raises(InputError, match="expected positive sums"):
        ratio_of_means([([1.0, 1.0], [0.0, 0.0])])
