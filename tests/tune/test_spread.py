"""Experts go to the layers in which they save most, at an equal mean number."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sere.table.expected_loss import Expected
from sere.tune.plans import Plans, settings_of, text_of
from sere.tune.simulate import Simulated
from sere.tune.spread import spread


def layer(height: float, power: float, most: int = 16) -> Simulated:
    """Errors that fall to 0 as M rises from 4 to ``most``; a step reads M experts."""
    return {
        M: Expected(height * (1 - (M - 4) / (most - 4)) ** power, 20.0, float(M)) for M in range(4, most + 1)
    }


CELLS = {0: layer(0.5, 1.0), 3: layer(0.9, 1.6), 7: layer(0.3, 1.2)}


def cost(plan: tuple[int, ...], weights: tuple[float, ...]) -> float:
    cells = zip(weights, CELLS.values(), plan, strict=True)
    return sum(weight * cell[M].error ** 2 for weight, cell, M in cells)


weights_of = st.tuples(*[st.floats(0.05, 5.0)] * 3)


@given(weights_of)
def test_no_other_plan_loses_less(weights: tuple[float, ...]) -> None:
    """Of all plans that read as many experts, none loses less by the simulation."""
    plans, expected = spread(CELLS, dict(zip(CELLS, weights, strict=True)))
    for mean in (5, 9, 14):
        assert sum(plans[mean]) == 3 * mean
        best = min(
            cost(one, weights) for one in product(range(4, 17), repeat=3) if sum(one) == 3 * mean
        )  # fmt: skip
        assert cost(plans[mean], weights) == pytest.approx(best)
        assert expected[mean].after == pytest.approx(mean)
        assert expected[mean].error ** 2 == pytest.approx(best / sum(weights))


@given(weights_of)
def test_a_larger_mean_takes_from_no_layer(weights: tuple[float, ...]) -> None:
    """So that settings can rise with the rows; the smallest and the largest M are those of all layers."""
    plans, _ = spread(CELLS, dict(zip(CELLS, weights, strict=True)))
    for mean in range(4, 16):
        assert all(less <= more for less, more in zip(plans[mean], plans[mean + 1], strict=True))
    assert plans[4] == (4, 4, 4)
    assert plans[16] == (16, 16, 16)


def test_steps_that_read_fewer_experts_than_m_count_what_they_read() -> None:
    """A layer whose steps never read more than 8 experts leaves the others what it does not use."""
    narrow = {M: Expected(0.5 * max(0, 8 - M) / 4, 8.0, float(min(M, 8))) for M in range(4, 17)}
    plans, expected = spread({0: narrow, 1: layer(0.5, 1.0)}, {0: 1.0, 1: 1.0})
    assert plans[12][0] == 8
    assert 2 * expected[12].after <= 8 + 12
    assert plans[12][1] == 12


def test_plans_become_settings_by_layer_and_rows() -> None:
    """One row reads K in each layer; M never falls as rows grow; equal numbers need no settings by layer."""
    plans = Plans.spread({4: CELLS, 8: CELLS}, {0: 1.0, 3: 4.0, 7: 0.2})
    own = plans.at(8, 10)
    assert isinstance(own, tuple)
    assert len(set(own)) > 1
    assert plans.points([(1, 4), (4, 12), (8, 10)]) == {
        index: ((1, 4), (4, plans.by_layer[4][12][place]), (8, plans.by_layer[4][12][place]))
        for place, index in enumerate(CELLS)
    }
    assert settings_of(own, plans.layers).for_layer(3).active_experts == own[1]
    assert text_of(own) == "/".join(map(str, own))
    uniform = Plans.uniform({4: CELLS})
    assert (uniform.at(4, 10), uniform.points([(1, 4), (4, 10)])) == (10, {})
