"""Numbers of experts by layer: measure what layers cost, spread by it, and keep it for the tiers that win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sere.tune.allocate import Allocation
from sere.tune.choose import Comparison, compare
from sere.tune.measure import Meter
from sere.tune.plans import ByLayer, Plans
from sere.tune.sensitivity import Sensitivities, measure_sensitivities
from sere.tune.solve import Solution, solve


@dataclass(frozen=True, slots=True)
class Layered:
    """What was found of the layers.

    Attributes:
        sensitivities: What their errors cost; None if that was not measured, or could not be told.
        compared: By tier, what numbers of their own gain on the held-out prompts.
        solution: What was measured of such plans, if a tier keeps them.
    """

    sensitivities: Sensitivities | None = None
    compared: Mapping[str, Comparison] = field(default_factory=dict)
    solution: Solution | None = None

    def kept(self, name: str) -> Solution | None:
        """Return what is known of a tier's own numbers by layer, if it keeps them."""
        one = self.compared.get(name)
        return self.solution if one is not None and one.kept else None


def find_layers(
    cells: ByLayer,
    planned: Mapping[str, Allocation],
    accepted: Mapping[str, float],
    rows: Sequence[int],
    same: Solution,
    meter: Meter,
    *,
    runs: int,
    num_experts: int,
) -> Layered:
    """Find out which tiers gain by numbers of experts that differ from layer to layer.

    Args:
        cells: What the table says.
        planned: Each tier's M by rows, if all layers read the same number.
        accepted: The loss that each tier accepts.
        rows: The rows to measure.
        same: What was measured of plans in which all layers read the same number.
        meter: Measures.
        runs: Most measurements of sensitivities.
        num_experts: E.
    """
    tiers = sorted(planned.values(), key=lambda one: one.accepted)
    middle = tiers[len(tiers) // 2]
    found = measure_sensitivities(meter, cells, {B: middle.at(B) for B in rows}, runs=runs)
    if found is None:
        return Layered()
    plans = Plans.spread(cells, found.by_layer)
    compared = {name: compare(one, rows, meter, plans) for name, one in planned.items()}
    losses = [accepted[name] for name, one in compared.items() if one.kept]
    if not losses:
        return Layered(found, compared)
    prior = same.known_under(found.by_layer, cells)
    return Layered(found, compared, solve(plans, losses, rows, meter, num_experts=num_experts, prior=prior))
