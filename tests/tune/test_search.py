"""The search for the smallest M: what it finds, and with how few measurements."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sere.tune.search import Curve, predictor

ERRORS = {M: max(0.0, 0.6 * exp(-M / 14) - 0.6 * exp(-64 / 14)) for M in range(8, 65)}


def curve(loss: dict[int, float], **options: object) -> tuple[Curve, list[int]]:
    """A curve whose losses are known to the test only, and the list of what it measures."""
    asked: list[int] = []

    def measure(M: int) -> float:
        asked.append(M)
        return loss[M]

    return Curve(ERRORS, measure, **options), asked  # type: ignore[arg-type]


def smallest(loss: dict[int, float], accepted: float) -> int:
    return min(M for M in loss if loss[M] <= accepted)


@given(
    power=st.floats(1.2, 4.5),
    factor=st.floats(0.01, 3),
    accepted=st.floats(1e-5, 0.5),
    within=st.integers(1, 4),
)
def test_the_smallest_number_is_found(power: float, factor: float, accepted: float, within: int) -> None:
    """Give or take what is good enough, and never one that loses more than accepted."""
    loss = {M: factor * error**power for M, error in ERRORS.items()}
    one, asked = curve(loss)
    found = one.find(accepted, within=within, tries=12)
    right = smallest(loss, accepted)
    assert right <= found < right + within
    assert loss[found] <= accepted
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("accepted", [0.0005, 0.002, 0.008])
def test_few_measurements_do(accepted: float) -> None:
    """Where the loss follows the simulated error, three are enough; after another batch size, two."""
    loss = {M: 0.3 * error**3 for M, error in ERRORS.items()}
    one, asked = curve(loss)
    one.find(accepted, within=2)
    assert len(asked) <= 3
    other, asked = curve(loss, prior=one.pairs())
    assert other.find(accepted, within=2) < smallest(loss, accepted) + 2
    assert len(asked) <= 2


def test_a_second_loss_takes_what_the_first_found() -> None:
    """Nothing is measured twice, and what is known narrows the next search."""
    loss = {M: 0.3 * error**3 for M, error in ERRORS.items()}
    one, asked = curve(loss)
    for accepted in (0.008, 0.002, 0.008):
        one.find(accepted, within=1, tries=9)
    assert len(set(asked)) == len(asked)
    assert sorted(one.known) == sorted(asked)


def test_what_loses_nothing_needs_no_measurement() -> None:
    """With all experts that occur, nothing is re-routed: where nothing else is good enough, that is."""
    one, asked = curve(dict.fromkeys(ERRORS, 1.0))
    assert one.find(0.5, tries=3) == 64
    assert len(asked) == 3
    assert 64 not in asked


def test_the_fewest_experts_are_tried() -> None:
    """Where every M is good enough, the smallest is measured and taken."""
    one, asked = curve(dict.fromkeys(ERRORS, 0.0001))
    assert one.find(0.5) == 8
    assert asked == [8]


def test_a_noisy_point_does_not_slow_the_search() -> None:
    """Where each guess is only a little better than the one before, every third measurement is the middle."""
    one, asked = curve({M: 0.0019 if M >= 24 else 0.9 for M in ERRORS})
    one.known = {60: 0.0019}
    assert one.find(0.002, within=1, tries=30) == 24
    assert len(asked) <= 12


def test_a_loss_that_rises_again_is_not_believed() -> None:
    """Noise: an M that is good enough does not count if a larger one is known not to be."""
    one, _ = curve({})
    one.known = {16: 0.01, 20: 0.03, 30: 0.01}
    assert one.bracket(0.02) == (20, 30)


def test_predictions_follow_the_nearest_point() -> None:
    """A power law through what is known; nothing where nothing is re-routed."""
    predicted = predictor([(0.1, 0.001), (0.2, 0.008)], [])
    assert predicted(0.2) == pytest.approx(0.008)
    assert predicted(0.4) == pytest.approx(0.064)
    assert predicted(0.0) == 0
    assert predictor([], [(0.1, 0.001), (0.2, 0.008)])(0.4) == pytest.approx(0.064)
    # Two noisy points give no power that is out of the question.
    assert predictor([(0.1, 0.009), (0.2, 0.008)], [])(0.4) == pytest.approx(0.016)
