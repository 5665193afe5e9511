"""What a divergence costs in right answers: prices, and the divergence that a number of points buys."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sere.table.expected_loss import Expected
from sere.tune.answers import accepted_divergence, prices

QUESTIONS = 200
# Errors of 0.4, 0.39, ... 0 for M = 4 ... 44, the same at each number of rows.
SIMULATED = {B: {M: Expected((44 - M) / 100, 60.0, M) for M in range(4, 45)} for B in (8, 16)}


def paid(lost_above: float) -> list[tuple[float, float]]:
    """Return prices where a tenth of the answers is lost at an error above this, and none below."""

    def right(half: str, rows: int, plan: Any) -> list[bool]:
        assert half == "tuning"
        lost = 0 if plan is None or SIMULATED[rows][plan].error <= lost_above else QUESTIONS // 10
        return [index >= lost for index in range(QUESTIONS)]

    def loss(half: str, rows: int, plan: Any) -> Any:
        return SimpleNamespace(mean=SimpleNamespace(value=SIMULATED[rows][plan].error ** 2))

    examiner: Any = SimpleNamespace(asked={"tuning": [None] * QUESTIONS}, right=right)
    return list(prices(examiner, SimpleNamespace(loss=loss), SIMULATED, [8, 16]))  # type: ignore[arg-type]


def test_a_price_is_the_mean_divergence_and_the_most_that_it_costs() -> None:
    """The upper end of an interval around what is lost; never less than 3 in all answers."""
    divergences, most = zip(*paid(0.2), strict=True)
    assert divergences == pytest.approx([0.35**2, 0.25**2, 0.18**2, 0.12**2, 0.06**2])
    assert all(0.1 < value < 0.15 for value in most[:2])
    assert most[2:] == (3 / (2 * QUESTIONS),) * 3


def test_a_divergence_that_costs_no_more_than_accepted_is_accepted() -> None:
    """The largest of them, without a share of those that cost more, if that is less."""
    assert accepted_divergence(1.0, [(0.01, 0.05), (0.006, 0.009), (0.001, 0.008)]) == 0.006


def test_of_what_costs_more_the_part_in_proportion_is_accepted() -> None:
    """Where the larger divergence allows more, it counts."""
    assert accepted_divergence(1.0, [(0.1, 0.05), (0.006, 0.009)]) == pytest.approx(0.02)
    assert accepted_divergence(2.0, [(0.1, 0.05)]) == pytest.approx(0.04)


def test_where_little_is_lost_more_divergence_is_accepted() -> None:
    """A model that bears errors gets a larger divergence for the same points."""
    assert accepted_divergence(1.0, paid(0.3)) > accepted_divergence(1.0, paid(0.2))
