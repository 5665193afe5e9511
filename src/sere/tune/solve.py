"""What was measured of one kind of plans, and the number of experts that each goal gets from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from sere.tune.allocate import Allocation, allocate, known_pairs, search
from sere.tune.measure import Meter
from sere.tune.plan import Goal
from sere.tune.plans import ByLayer, Plans
from sere.tune.search import Curve, Known
from sere.tune.speed import Speed, fewest_for
from sere.tune.spread import expect


@dataclass(frozen=True, slots=True)
class Solution:
    """Measured losses of plans.

    Attributes:
        plans: The plans.
        curves: The losses by rows and M.
    """

    plans: Plans
    curves: Mapping[int, Curve]

    @property
    def known(self) -> Known:
        """Pairs of simulated error and measured loss."""
        return known_pairs(self.curves)

    def known_under(self, sensitivities: Mapping[int, float], cells: ByLayer) -> Known:
        """Return the pairs of plans with the same M in all layers, with errors weighted by sensitivity."""
        return [
            (expect(cells[B], dict.fromkeys(cells[B], M), sensitivities).error, loss)
            for B, curve in self.curves.items()
            for M, loss in curve.known.items()
        ]

    def allocate(self, goal: Goal, accepted: float, speed: Speed, top_k: int) -> Allocation:
        """Return what a goal gets.

        Args:
            goal: What is wanted.
            accepted: The loss that it accepts.
            speed: Compares steps.
            top_k: K.
        """
        if goal.kind != "speedup":
            return allocate(accepted, self.curves, self.plans.expected, top_k)
        found = {B: fewest_for(goal.value, B, cells, speed) for B, cells in self.plans.expected.items()}
        return Allocation(inf, {1: top_k} | found)


def solve(
    plans: Plans,
    accepted: Iterable[float],
    rows: Sequence[int],
    meter: Meter,
    *,
    num_experts: int,
    prior: Known = (),
) -> Solution:
    """Measure on the tuning prompts what it takes to stay within each accepted loss.

    Args:
        plans: The plans to measure.
        accepted: The losses; an infinite one needs no measurement.
        rows: The rows to measure.
        meter: Measures.
        num_experts: E.
        prior: Pairs of simulated error and loss that are known before.
    """

    def measure(B: int, M: int) -> float:
        return meter.loss("tuning", B, plans.at(B, M)).mean.value

    finite = [loss for loss in accepted if loss < inf]
    curves = search(finite, plans.expected, rows, measure, num_experts=num_experts, prior=prior)
    return Solution(plans, curves)
