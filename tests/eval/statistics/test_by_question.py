"""Intervals against published values."""

from __future__ import annotations

import random

import pytest

from sere.errors import InputError
from sere.eval.statistics.by_question import paired_difference, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, 857, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),  # no success: the normal interval would have no width
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_published_intervals(right: int, n: int, low: float, high: float) -> None:
    """Wilson's interval equals the values printed in Newcombe's comparison of seven methods."""
    interval = wilson(right, n)
    assert interval.value == right / n
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


def test_wilson_at_the_ends_contains_the_share() -> None:
    """With all or none right the bound on that side is the share itself, not a rounding past it."""
    assert wilson(0, 7).low == 0.0
    assert wilson(7, 7).high == 1.0


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    after = [True] * (both + gained) + [False] * (lost + neither)
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    return after, before


def test_paired_difference_matches_the_published_interval() -> None:
    """The paired interval equals the one printed with Newcombe's method 10 for cells 36, 12, 2, 0."""
    interval = paired_difference(*pairs(36, 12, 2, 0))
    assert interval.value == pytest.approx(0.2)
    assert interval.low == pytest.approx(0.0569, abs=5e-5)
    assert interval.high == pytest.approx(0.3404, abs=5e-5)


def test_paired_difference_is_mirrored_by_swapping_the_methods() -> None:
    """Comparing b with a gives the interval of a with b, mirrored at 0."""
    after, before = pairs(80, 7, 11, 22)
    one, other = paired_difference(after, before), paired_difference(before, after)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_paired_difference_covers_the_truth_as_often_as_it_says() -> None:
    """Over 1000 simulated evaluations the 95 % interval holds the truth 930 to 980 times."""
    generator = random.Random(0)
    cells = [(True, True)] * 85 + [(True, False)] * 3 + [(False, True)] * 6 + [(False, False)] * 6
    covered = 0
    for _ in range(1000):
        drawn = generator.choices(cells, k=400)
        interval = paired_difference([pair[0] for pair in drawn], [pair[1] for pair in drawn])
        covered += interval.low <= -0.03 <= interval.high
    assert 930 <= covered <= 980


def test_paired_difference_of_equal_answers_is_zero_and_narrow() -> None:
    """The same answers give a difference of 0 whose interval is far narrower than that of unpaired shares."""
    answers = [True] * 900 + [False] * 100
    interval = paired_difference(answers, answers)
    assert interval.value == 0.0
    assert interval.high - interval.low < 0.25 * (2 * (wilson(900, 1000).high - wilson(900, 1000).low))


def test_bad_counts_are_refused() -> None:
    """Impossible counts and unequal lengths raise, naming what came."""
    with pytest.raises(InputError, match="right=3, n=2"):
        wilson(3, 2)
    with pytest.raises(InputError, match="got 1 and 2"):
        paired_difference([True], [True, False])
