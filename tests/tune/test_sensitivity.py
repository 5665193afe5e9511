"""What layers cost: found where it is there, and no more told apart than noise allows."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from sere.table.expected_loss import Expected
from sere.tune.measure import Loss
from sere.tune.plans import Plan
from sere.tune.sensitivity import measure_sensitivities, runs_of

PROMPTS = 200


def cells_of(layers: int) -> dict[int, dict[int, dict[int, Expected]]]:
    """Errors that fall in a straight line from M = 4 to 40, the same in all layers."""
    falling = {M: Expected((40 - M) / 40, 40.0, float(M)) for M in range(4, 41)}
    return {B: dict.fromkeys(range(layers), falling) for B in (4, 8, 16)}


class Measured:
    """Losses whose root is the layers' squared errors times what they cost, with noise by prompt."""

    def __init__(self, costs: list[float], noise: float = 0.0) -> None:
        self.costs, self.noise = costs, noise
        self.asked: list[tuple[int, Plan]] = []

    def loss(self, half: str, rows: int, plan: Plan) -> Loss:
        """Return what a `Meter` would."""
        assert half == "tuning"
        self.asked.append((rows, plan))
        by_layer = [plan] * len(self.costs) if isinstance(plan, int) else plan
        root = sum(cost * ((40 - M) / 40) ** 2 for cost, M in zip(self.costs, by_layer, strict=True))
        random = Random(str((rows, plan)))
        roots = [10 * rows * root * (1 + random.gauss(0, self.noise)) for _ in range(PROMPTS)]
        return Loss(rows, [10] * PROMPTS, [0.1] * PROMPTS, roots, [9] * PROMPTS, 30.0, 20.0)


def measured(meter: Any, layers: int, runs: int = 48) -> Any:
    return measure_sensitivities(meter, cells_of(layers), {4: 12, 8: 20, 16: 28}, runs=runs)


def test_what_layers_cost_is_found() -> None:
    """Relative to their mean, pooled over batch sizes whose losses differ in size."""
    costs = [8.0, 0.5, 2.0, 1.5]
    meter = Measured(costs)
    found = measured(meter, 4)
    assert list(found.by_layer.values()) == pytest.approx([cost / 3 for cost in costs])
    assert found.at == {4: 12, 8: 20, 16: 28}
    assert (4, (9, 12, 12, 12)) in meter.asked
    assert len([plan for _, plan in meter.asked if isinstance(plan, tuple)]) == runs_of(4, 3, 48) == 12


def test_noise_is_not_taken_for_a_difference() -> None:
    """Layers that cost the same end near the mean, nearer than they were measured; real differences stay."""
    found = measured(Measured([1.0] * 6, noise=0.4), 6)
    drawn = max(abs(value - 1) for value in found.by_layer.values())
    assert drawn < 0.7 * max(abs(value - 1) for value in found.measured)
    told = measured(Measured([8.0, 0.1, 1.0, 1.0, 1.0, 1.0], noise=0.02), 6)
    assert told.by_layer[0] == pytest.approx(8 / (12.1 / 6), rel=0.1)
    assert min(told.by_layer.values()) > 0


def test_neighbors_move_together_in_deep_models() -> None:
    """48 layers move in 24 groups at two batch sizes, or in as many groups as runs are allowed."""
    meter = Measured([2.0, 2.0, 1.0, 1.0] * 12)
    found = measured(meter, 48)
    assert [list(group) for group in found.groups[:2]] == [[0, 1], [2, 3]]
    assert list(found.by_layer) == list(range(48))
    assert found.by_layer[0] == pytest.approx(2 * found.by_layer[2])
    assert found.by_layer[0] == found.by_layer[1]
    assert len([plan for _, plan in meter.asked if isinstance(plan, tuple)]) == runs_of(48, 3, 48) == 48
    assert list(found.at) == [4, 16]
    few = measured(Measured([2.0, 2.0, 1.0, 1.0]), 4, runs=2)
    assert [list(group) for group in few.groups] == [[0, 1], [2, 3]]
    assert list(few.at) == [8]


def test_nothing_is_told_where_nothing_is_lost() -> None:
    """Without any loss there are no sensitivities."""
    assert measured(Measured([0.0, 0.0]), 2) is None
