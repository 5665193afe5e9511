"""M by rows: never falling, K for one row, and predicted where it cannot be measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sere.config import RerouteConfig
from sere.table.expected_loss import Expected
from sere.tune.allocate import Allocation, allocate, predicted, search
from sere.tune.simulate import Simulated


def simulated(rows: int) -> Simulated:
    """Errors that fall to 0 at the number of distinct experts, which grows with the rows."""
    most = min(48, 4 * rows)
    return {M: Expected(0.5 * (1 - M / most), float(most), float(M)) for M in range(4, most + 1)}


SIMULATED = {rows: simulated(rows) for rows in (2, 4, 8, 16, 256)}


@given(st.dictionaries(st.integers(1, 256), st.integers(1, 128), min_size=1))
def test_points_never_fall(by_rows: dict[int, int]) -> None:
    """More rows never get fewer experts, no rows get fewer than they need, and settings take the points."""
    points = Allocation(0.1, by_rows).points
    numbers = [M for _, M in points]
    assert numbers == sorted(numbers)
    assert all(by_rows[rows] <= M for rows, M in points)
    assert [rows for rows, _ in points] == sorted(by_rows)
    assert RerouteConfig(active_experts=points).active_experts == points


def loss(rows: int, M: int) -> float:
    return float(0.2 * SIMULATED[rows][M].error ** 3)


def test_each_loss_gets_the_fewest_experts() -> None:
    """Measured rows keep within the accepted loss; a smaller loss takes at least as many experts."""
    curves = search([0.002, 0.0005], SIMULATED, [4, 8, 16], loss, num_experts=48)
    assert list(curves) == [4, 8, 16]
    found = {accepted: allocate(accepted, curves, SIMULATED, 4) for accepted in (0.002, 0.0005)}
    for accepted, allocation in found.items():
        assert allocation.points[0] == (1, 4)
        assert [rows for rows, _ in allocation.points] == [1, 2, 4, 8, 16, 256]
        for rows in (4, 8, 16):
            M = allocation.at(rows)
            assert loss(rows, M) <= accepted < loss(rows, M - 1)
    safe, fast = (dict(found[accepted].points) for accepted in (0.0005, 0.002))
    assert all(safe[rows] >= fast[rows] for rows in safe)


def test_rows_that_are_not_measured_follow_the_others() -> None:
    """Their M is the smallest that the simulated error and the measured losses predict to be enough."""
    curves = search([0.002], SIMULATED, [4, 8, 16], loss, num_experts=48)
    for rows in (2, 256):
        M = allocate(0.002, curves, SIMULATED, 4).by_rows[rows]
        assert loss(rows, M) == pytest.approx(0.002, rel=0.35)


def test_a_raised_number_lifts_those_of_more_rows() -> None:
    """What verification raises at 8 rows holds for 16, too."""
    raised = Allocation(0.1, {1: 4, 8: 12, 16: 20}).raised(8, 30)
    assert raised.points == ((1, 4), (8, 30), (16, 30))
    assert raised.at(16) == 30


def test_a_prediction_without_any_measurement_is_a_guess() -> None:
    """There is a number even then, in the range of M."""
    assert 4 <= predicted(0.002, SIMULATED[8], []) <= 32
