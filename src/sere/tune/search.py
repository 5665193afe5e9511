"""Find the smallest M whose loss stays within the accepted one, with as few measurements as possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from statistics import fmean

# A first guess where nothing was measured yet: loss = _FIRST * error ** _POWER.
_FIRST, _POWER = 0.2, 3.0
# Powers that two noisy measurements may suggest, and that are still believed.
_FLATTEST, _STEEPEST = 1.0, 5.0

Known = Sequence[tuple[float, float]]
"""Pairs of simulated error and measured loss."""


@dataclass(slots=True)
class Curve:
    """The loss over M at one number of rows, as far as it is known.

    Attributes:
        errors: The simulated error at every M, from the smallest to where nothing is re-routed any longer.
        measure: Measures the loss at an M.
        prior: What is known at other numbers of rows.
        known: Losses by M so far.
    """

    errors: Mapping[int, float]
    measure: Callable[[int], float]
    prior: Known = ()
    known: dict[int, float] = field(default_factory=dict)

    def find(self, accepted: float, *, within: int = 1, tries: int = 6) -> int:
        """Return the smallest M whose loss is at most the accepted one, give or take.

        Args:
            accepted: The loss.
            within: How many experts more than the smallest are good enough, at least 1.
            tries: Most measurements.

        Returns:
            An M whose loss was measured to be within the accepted one, or the one from which on nothing is
            re-routed.
        """
        low, high = self.bracket(accepted)
        sides: list[bool] = []
        while tries and high - low > within:
            # Two guesses that moved the same end gain little by a third: then the middle.
            stuck = len(sides) > 1 and sides[-1] == sides[-2]
            M = (low + high) // 2 if stuck else min(max(self.guess(accepted), low + 1), high - 1)
            self.known[M] = self.measure(M)
            sides = [] if stuck else [*sides, self.known[M] <= accepted]
            low, high = self.bracket(accepted)
            tries -= 1
        return high

    def bracket(self, accepted: float) -> tuple[int, int]:
        """Return the largest M known to lose too much, and the smallest above it known not to."""
        low = max((M for M, loss in self.known.items() if loss > accepted), default=min(self.errors) - 1)
        good = (M for M, loss in self.known.items() if loss <= accepted and low < M)
        return low, min(good, default=max(self.errors))

    def guess(self, accepted: float) -> int:
        """Return the smallest M that is predicted to stay within a loss."""
        predicted = predictor(self.pairs(), self.prior)
        low, high = min(self.errors), max(self.errors)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if predicted(self.errors[middle]) <= accepted else (middle + 1, high)
        return low

    def pairs(self) -> list[tuple[float, float]]:
        """Return what is known as pairs of simulated error and loss."""
        return [(self.errors[M], loss) for M, loss in self.known.items()]


def predictor(own: Known, prior: Known) -> Callable[[float], float]:
    """Return what predicts the loss from the simulated error: a power law through the nearest known point.

    Args:
        own: Measured at this number of rows.
        prior: Measured at others; used where ``own`` is not enough.
    """
    mine, others = _logs(own), _logs(prior)
    anchors = mine or others or [(0.0, log(_FIRST))]

    def predict(error: float) -> float:
        if error <= 0:
            return 0.0
        x = log(error)
        near = sorted(anchors, key=lambda point: abs(point[0] - x))
        power = _power(near[:2]) or _power([*mine, *others]) or _POWER
        return exp(near[0][1] + power * (x - near[0][0]))

    return predict


def _logs(known: Known) -> list[tuple[float, float]]:
    return [(log(error), log(loss)) for error, loss in known if error > 0 and loss > 0]


def _power(points: Known) -> float | None:
    """Return the slope of a straight line through points, by least squares; None if it cannot be told."""
    if len(points) < 2:
        return None
    center_x, center_y = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = sum((x - center_x) ** 2 for x, _ in points)
    if spread < 1e-6:
        return None
    slope = sum((x - center_x) * (y - center_y) for x, y in points) / spread
    return min(max(slope, _FLATTEST), _STEEPEST)
