"""Measure every tier on prompts that it was not tuned on; raise M where it loses more than was accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sere.tune.allocate import Allocation
from sere.tune.measure import Loss, Meter
from sere.tune.plans import Plans
from sere.tune.search import Curve, Known

# Share of the experts by which a raised M may be too high, and how often it is measured.
_FINE, _TRIES = 16, 4


@dataclass(frozen=True, slots=True)
class Verified:
    """One tier at one number of rows.

    Attributes:
        active_experts: M.
        loss: On the held-out prompts.
        tuned: M before it was raised.
        tried: Every M that was measured.
    """

    active_experts: int
    loss: Loss
    tuned: int
    tried: Sequence[int]

    def describe(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        raised = None if self.tuned == self.active_experts else self.tuned
        return {
            "active_experts": self.active_experts,
            **self.loss.describe(),
            "raised_from": raised,
            "verified": sorted(self.tried),
        }


def verify(
    allocation: Allocation,
    rows: Sequence[int],
    meter: Meter,
    plans: Plans,
    known: Known,
) -> tuple[Allocation, dict[int, Verified]]:
    """Measure a tier at each number of rows, and raise its M where the held-out loss is too large.

    Args:
        allocation: The tier's M by rows.
        rows: The rows to measure, in ascending order.
        meter: Measures.
        plans: What the layers read, by rows and M.
        known: Pairs of simulated error and loss, from tuning.

    Returns:
        The allocation that holds, and what was measured of it.
    """
    found = {}
    for B in rows:
        tuned = allocation.at(B)
        curve = Curve(plans.errors(B), partial(_value, meter, plans, B), known)
        if tuned < max(curve.errors):
            curve.known[tuned] = curve.measure(tuned)
        M = tuned
        if curve.known.get(tuned, 0.0) > allocation.accepted:
            M = curve.find(allocation.accepted, within=max(1, len(curve.errors) // _FINE), tries=_TRIES)
            allocation = allocation.raised(B, M)
        found[B] = Verified(M, _held_out(meter, plans, B, M), tuned, [*{*curve.known, M}])
    return allocation, found


def _value(meter: Meter, plans: Plans, rows: int, active_experts: int) -> float:
    return _held_out(meter, plans, rows, active_experts).mean.value


def _held_out(meter: Meter, plans: Plans, rows: int, active_experts: int) -> Loss:
    return meter.loss("held-out", rows, plans.at(rows, active_experts))
