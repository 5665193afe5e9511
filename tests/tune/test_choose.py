"""Own numbers by layer are kept where they win on held-out prompts beyond the interval, and only there."""

from __future__ import annotations

from typing import Any

import pytest

from sere.table.expected_loss import Expected
from sere.tune.allocate import Allocation
from sere.tune.choose import compare
from sere.tune.measure import Loss
from sere.tune.plans import Plan, Plans

CELLS = {
    index: {M: Expected(scale * (16 - M) / 16, 16.0, float(M)) for M in range(4, 17)}
    for index, scale in ((0, 0.9), (1, 0.3))
}
PLANS = Plans.spread({4: CELLS, 8: CELLS}, {0: 3.0, 1: 0.5})
EQUAL = Allocation(0.1, {1: 4, 4: 8, 8: 10})


class Measured:
    """Held-out losses whose ratio at each number of rows is given, with a spread between prompts."""

    def __init__(self, ratios: dict[int, float], spread: float) -> None:
        self.ratios, self.spread = ratios, spread

    def loss(self, half: str, rows: int, plan: Plan) -> Loss:
        """Return what a `Meter` would."""
        assert half == "held-out"
        scale = 1.0 if isinstance(plan, int) else self.ratios[rows]
        wide = 0.0 if isinstance(plan, int) else self.spread
        kl = [scale * (1 + wide * (-1) ** prompt) for prompt in range(40)]
        return Loss(rows, [10] * 40, kl, kl, [9] * 40, 16.0, 8.0)


def compared(ratios: dict[int, float], spread: float = 0.0) -> Any:
    return compare(EQUAL, [4, 8], Measured(ratios, spread), PLANS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratios", "spread", "kept"),
    [
        ({4: 0.8, 8: 0.9}, 0.1, True),
        ({4: 0.95, 8: 1.0}, 0.9, False),
        ({4: 1.2, 8: 1.1}, 0.0, False),
        ({4: 0.3, 8: 1.2}, 0.0, False),
        ({4: 0.3, 8: 1.02}, 0.9, True),
    ],
    ids=["wins", "within the interval", "loses", "loses at a batch size", "may lose at a batch size"],
)
def test_only_a_win_beyond_the_interval_is_kept(ratios: dict[int, float], spread: float, kept: bool) -> None:
    """The mean over the batch sizes decides, unless one of them alone loses beyond its interval."""
    found = compared(ratios, spread)
    assert found.kept is kept
    assert found.ratio.value == pytest.approx((ratios[4] * ratios[8]) ** 0.5)
    shown = found.describe()
    assert shown["kept"] is kept
    assert shown["by_batch_size"]["8"]["ratio"]["value"] == pytest.approx(ratios[8])


def test_plans_that_are_the_same_are_not_compared() -> None:
    """Where all layers would read the same number anyway, nothing is measured."""
    same = Plans.spread({4: CELLS, 8: CELLS}, {0: 1.0, 1: 9.0})
    found = compare(Allocation(0.1, {1: 4, 4: 16}), [4], Measured({}, 0.0), same)  # type: ignore[arg-type]
    assert (found.ratio, found.kept, found.describe()["ratio"]) == (None, False, None)
