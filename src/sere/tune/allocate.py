"""The fewest experts for each tier and number of rows, from measured and simulated losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from sere.tune.plans import Points
from sere.tune.search import Curve, Known
from sere.tune.simulate import Simulated

# Rows beside those that are measured: between K experts for one row and the smallest measured, and as far as
# kernels tell numbers of rows apart.
BETWEEN = (2, 256)
# Share of the experts that an M may be above the smallest that would do: finer is within the noise.
_FINE = 48


@dataclass(frozen=True, slots=True)
class Allocation:
    """One tier's M by rows.

    Attributes:
        accepted: The loss in nats per token that counts.
        by_rows: M by rows, not yet monotone.
    """

    accepted: float
    by_rows: Mapping[int, int]

    @property
    def points(self) -> Points:
        """M by rows, never falling as the rows grow."""
        rows = sorted(self.by_rows)
        return tuple(zip(rows, accumulate((self.by_rows[B] for B in rows), max), strict=True))

    def at(self, rows: int) -> int:
        """Return M at a number of rows that was allocated."""
        return dict(self.points)[rows]

    def raised(self, rows: int, active_experts: int) -> Allocation:
        """Return the same with another M at a number of rows."""
        return Allocation(self.accepted, {**self.by_rows, rows: active_experts})


def errors_of(simulated: Simulated) -> dict[int, float]:
    """Return the simulated relative error by M."""
    return {M: found.error for M, found in simulated.items()}


def known_pairs(curves: Mapping[int, Curve]) -> list[tuple[float, float]]:
    """Return all pairs of simulated error and loss that curves know."""
    return [pair for curve in curves.values() for pair in curve.pairs()]


def search(
    accepted: Sequence[float],
    simulated: Mapping[int, Simulated],
    measured: Sequence[int],
    measure: Callable[[int, int], float],
    *,
    num_experts: int,
    prior: Known = (),
) -> dict[int, Curve]:
    """Measure, at one number of rows after the other, what it takes to stay within each accepted loss.

    Args:
        accepted: The losses.
        simulated: What the table says, by rows.
        measured: The rows to measure.
        measure: Returns the loss at (rows, M).
        num_experts: E.
        prior: Pairs of simulated error and loss that are known before.

    Returns:
        All that is known, by rows.
    """
    curves: dict[int, Curve] = {}
    for rows in measured:
        known = [*prior, *known_pairs(curves)]
        curve = Curve(errors_of(simulated[rows]), partial(measure, rows), known)
        for loss in sorted(accepted, reverse=True):
            curve.find(loss, within=max(1, num_experts // _FINE))
        curves[rows] = curve
    return curves


def allocate(
    accepted: float,
    curves: Mapping[int, Curve],
    simulated: Mapping[int, Simulated],
    top_k: int,
) -> Allocation:
    """Return the smallest M that stays within a loss: measured where it was, else as the simulation predicts.

    Args:
        accepted: The loss.
        curves: What was measured, by rows.
        simulated: What the table says, by rows; also of rows that were not measured.
        top_k: K.
    """
    known = known_pairs(curves)
    by_rows = {1: top_k}
    for rows, cells in simulated.items():
        if rows in curves:
            by_rows[rows] = curves[rows].bracket(accepted)[1]
        else:
            by_rows[rows] = predicted(accepted, cells, known)
    return Allocation(accepted, by_rows)


def predicted(accepted: float, simulated: Simulated, known: Known) -> int:
    """Return the smallest M that should stay within a loss.

    Args:
        accepted: The loss.
        simulated: What the table says of these rows.
        known: Pairs of simulated error and loss at any rows.
    """
    return Curve(errors_of(simulated), _never, known).guess(accepted)


def _never(_M: int) -> float:
    raise AssertionError("a prediction measures nothing")
