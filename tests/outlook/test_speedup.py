"""Decode steps to expect, by chance and from a table's sample."""

from __future__ import annotations

import pytest

from sere.outlook import ROWS, expect_steps
from sere.policies.base import LayerShape
from sere.step_time import Ceilings, StepWeights
from tests.support.tables import sample, table

SHAPES = (LayerShape(0, 128, 8), LayerShape(1, 128, 8))
WEIGHTS = StepWeights(10**8, 9.4e6, 2, 5 * 10**7, 4.7e6)


def test_by_chance_and_the_default_settings() -> None:
    """M is the formula's; no fewer experts stay than the heaviest of the rows; one row is as before."""
    steps = expect_steps(SHAPES, WEIGHTS, None)
    assert [step.rows for step in steps] == list(ROWS)
    assert [step.most for step in steps] == [8, 26, 32, 38, 44, 50]
    assert [round(step.before) for step in steps] == [8, 52, 82, 112, 126, 128]
    # At 64 rows the heaviest experts, 128 (1 - (1 - 1/128)^64), are more than M.
    assert [round(step.after) for step in steps] == [8, 26, 32, 38, 51, 81]
    assert all(step.pairs_before == step.pairs_after == 8 * step.rows for step in steps)
    assert steps[0].fewer_bytes == 1.0
    assert steps[1].fewer_bytes == pytest.approx(WEIGHTS.fewer_bytes(steps[1].before, 26))
    assert all(step.ratio is None for step in steps)


def test_with_ceilings_there_are_times() -> None:
    """Where reading takes all of the time, a step is as much faster as it reads fewer bytes."""
    reading = Ceilings(1e9, 1e30)
    for step in expect_steps(SHAPES, WEIGHTS, reading):
        assert step.ratio == pytest.approx(step.fewer_bytes)
    computing = expect_steps(SHAPES, WEIGHTS, Ceilings(1e30, 1e9), rows=[64])
    # As many pairs in fewer blocks of rows: a little faster.
    assert computing[0].ratio == pytest.approx(1.05, abs=0.05)


def test_sizes_that_are_not_known_leave_experts() -> None:
    """As of a model that Transformers lacks."""
    (step,) = expect_steps(SHAPES, None, Ceilings(1e9, 1e9), rows=[8])
    assert round(step.before) == 52
    assert step.fewer_bytes is step.ratio is None


def test_a_tables_sample_says_what_is_read() -> None:
    """Its own routing and settings, not chance: as many experts as the rows of the sample choose."""
    known = table(routing=sample())
    shapes = [LayerShape(index, 5, 2) for index in known.layers]
    found = expect_steps(shapes, None, None, table=known, rows=[1, 4])
    assert found[0].before == 2.0
    assert all(step.after <= step.before <= 5 for step in found)
    without = expect_steps(shapes, None, None, table=table(), rows=[4])
    assert without[0].before == pytest.approx(5 * (1 - 0.6**4))
