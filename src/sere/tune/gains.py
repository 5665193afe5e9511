"""The least gain of a tier: a larger one leaves out more slots, which saves time and may lose more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf, log
from statistics import fmean
from typing import Any

from sere.tune.allocate import Allocation, known_pairs, predicted
from sere.tune.measure import Meter
from sere.tune.plans import ByLayer, Plans
from sere.tune.search import Curve, Known
from sere.tune.solve import Solution
from sere.tune.speed import Speed

CANDIDATES = (0.001, 0.003, 0.01)
"""Least gains that are tried, as shares of a row's energy; docs/method.md section 4."""
# A least gain must save so much of the predicted time; a raised M is found with so few measurements.
_WORTH, _FINE, _TRIES = 0.01, 16, 2


@dataclass(frozen=True, slots=True)
class Trial:
    """One tier under one least gain.

    Attributes:
        min_gain: τ.
        allocation: M by rows.
        plans: What the layers read, with what the table expects of it under τ.
        known: Pairs of simulated error and loss.
        time: Predicted time of a step relative to τ = 0: the geometric mean over the rows.
        measured: Whether losses were measured; not where too little time would be saved.
    """

    min_gain: float
    allocation: Allocation
    plans: Plans
    known: Known
    time: float = 1.0
    measured: bool = True


@dataclass(frozen=True, slots=True)
class Chosen:
    """The trial that was kept, and all of them. Each that was kept saved 1 % more than the one before."""

    best: Trial
    tried: Sequence[Trial] = field(default_factory=list)

    def describe(self) -> list[dict[str, Any]]:
        """Return what was tried as JSON-ready values."""
        return [
            {
                "min_gain": one.min_gain,
                "kept": one is self.best,
                "measured": one.measured,
                "time": round(one.time, 4),
                "active_experts": [list(point) for point in one.allocation.points],
            }
            for one in self.tried
        ]


def choose_gain(
    planned: Allocation,
    found: Solution,
    cells_under: Callable[[float], ByLayer],
    rows: Sequence[int],
    meter: Meter,
    speed: Speed,
) -> Chosen:
    """Return the least gain and M that should save the most time within the accepted loss.

    The middle candidate is tried first. If it saves time, the next larger one is tried, else the next smaller
    one. Each is measured at the M of τ = 0; where it loses more than is accepted, M grows. One replaces the
    best so far only if it saves 1 % more of the time without τ.

    Args:
        planned: M by rows with τ = 0.
        found: What was measured with τ = 0.
        cells_under: Returns what the table says under a least gain.
        rows: The rows to measure.
        meter: Measures on the tuning prompts.
        speed: Predicts times; without ceilings of a machine, τ stays 0.
    """
    best = Trial(0.0, planned, found.plans, found.known)
    if speed.ceilings is None or planned.accepted == inf:
        return Chosen(best)
    tried = [best]
    at = len(CANDIDATES) // 2
    for step in (0, None):
        if step is None:
            at += 1 if best is tried[-1] else -1
        one = _try(CANDIDATES[at], planned, found, cells_under(CANDIDATES[at]), rows, meter, speed)
        tried.append(one)
        if one.measured and one.time < best.time - _WORTH:
            best = one
    return Chosen(best, tried)


def _try(
    min_gain: float,
    planned: Allocation,
    found: Solution,
    cells: ByLayer,
    rows: Sequence[int],
    meter: Meter,
    speed: Speed,
) -> Trial:
    """Measure a tier under a least gain, unless it would save too little even if M stayed."""
    plans = found.plans.under(cells)
    time = _time(planned, planned, found.plans, plans, rows, speed)
    if time >= 1 - _WORTH:
        return Trial(min_gain, planned, plans, found.known, time, measured=False)
    meter = meter.under(min_gain)
    curves: dict[int, Curve] = {}
    for B in rows:
        curve = curves[B] = _curve(B, plans, meter, [*found.known, *known_pairs(curves)])
        if planned.at(B) < max(curve.errors):
            loss = curve.known[planned.at(B)] = curve.measure(planned.at(B))
            if loss > planned.accepted:
                curve.find(planned.accepted, within=max(1, len(curve.errors) // _FINE), tries=_TRIES)
    known = known_pairs(curves)
    by_rows = dict(planned.by_rows)
    for B, simulated in plans.expected.items():
        if B in curves:
            tried = planned.at(B)
            held = curves[B].known.get(tried, 0.0) <= planned.accepted
            by_rows[B] = tried if held else curves[B].bracket(planned.accepted)[1]
        else:
            by_rows[B] = max(planned.at(B), predicted(planned.accepted, simulated, known))
    allocation = Allocation(planned.accepted, by_rows)
    time = _time(allocation, planned, found.plans, plans, rows, speed)
    return Trial(min_gain, allocation, plans, [*found.known, *known], time)


def _curve(rows: int, plans: Plans, meter: Meter, prior: Known) -> Curve:
    def measure(M: int) -> float:
        return meter.loss("tuning", rows, plans.at(rows, M)).mean.value

    return Curve(plans.errors(rows), measure, prior)


def _time(
    new: Allocation, old: Allocation, before: Plans, after: Plans, rows: Sequence[int], speed: Speed
) -> float:
    """Return the predicted time relative to that without a least gain: the geometric mean over the rows."""

    def faster(allocation: Allocation, expected: Mapping[int, Any], B: int) -> float:
        return log(speed.times(B, expected[B][allocation.at(B)]))

    return exp(fmean(faster(old, before.expected, B) - faster(new, after.expected, B) for B in rows))
