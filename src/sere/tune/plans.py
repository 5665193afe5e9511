"""What the layers read: the same number of experts in all of them, or in each its own at an equal mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Self

from sere.config import RerouteConfig
from sere.tune.simulate import Simulated, mean_of_layers
from sere.tune.spread import expect, spread

Plan = int | tuple[int, ...]
"""M of all layers, or of each in the order of the layers."""

Points = tuple[tuple[int, int], ...]
"""M by rows of the step, in the order of the rows: what `RerouteConfig` takes as ``active_experts``."""

ByLayer = Mapping[int, Mapping[int, Simulated]]
"""What the table says by rows, then by decoder-layer index."""


@dataclass(frozen=True, slots=True)
class Plans:
    """A plan for each number of rows and each mean M, with what the table expects of it.

    Attributes:
        layers: The decoder-layer indices, in the order of the plans.
        expected: By rows and M. The error is the layers' mean, or with ``sensitivities`` the root of their
            weighted mean square.
        sensitivities: Loss per unit of squared relative error by layer; empty if all layers read the same
            number.
        by_layer: By rows and M: each layer's number; empty if all layers read the same number.
    """

    layers: Sequence[int]
    expected: Mapping[int, Simulated]
    sensitivities: Mapping[int, float] = field(default_factory=dict)
    by_layer: Mapping[int, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)

    @classmethod
    def uniform(cls, cells: ByLayer) -> Self:
        """Return those with the same number in all layers."""
        layers = list(next(iter(cells.values())))
        return cls(layers, {B: mean_of_layers(one) for B, one in cells.items()})

    @classmethod
    def spread(cls, cells: ByLayer, sensitivities: Mapping[int, float]) -> Self:
        """Return those that spread an equal number of experts by the layers' sensitivities."""
        found = {B: spread(one, sensitivities) for B, one in cells.items()}
        return cls(
            list(sensitivities),
            {B: expected for B, (_, expected) in found.items()},
            sensitivities,
            {B: plans for B, (plans, _) in found.items()},
        )

    def under(self, cells: ByLayer) -> Self:
        """Return the same plans with what the table expects of them under another least gain.

        Args:
            cells: What the table says under it.
        """
        expected: Mapping[int, Simulated] = {B: mean_of_layers(one) for B, one in cells.items()}
        if self.by_layer:
            expected = {
                B: {
                    M: expect(cells[B], dict(zip(self.layers, own, strict=True)), self.sensitivities)
                    for M, own in plans.items()
                }
                for B, plans in self.by_layer.items()
            }
        return replace(self, expected=expected)

    def at(self, rows: int, active_experts: int) -> Plan:
        """Return the plan of a mean M at a number of rows."""
        return self.by_layer[rows][active_experts] if self.by_layer else active_experts

    def errors(self, rows: int) -> dict[int, float]:
        """Return the simulated error at a number of rows by mean M."""
        return {M: one.error for M, one in self.expected[rows].items()}

    def points(self, by_rows: Iterable[tuple[int, int]]) -> dict[int, Points]:
        """Return each layer's M by rows, never falling as the rows grow; empty if all layers read the same.

        Args:
            by_rows: Mean M by rows, in the order of the rows. For rows without plans, as for a single row,
                each layer reads the mean.
        """
        if not self.by_layer:
            return {}
        given = list(by_rows)
        found = {}
        for place, index in enumerate(self.layers):
            own = [self.by_layer[B][M][place] if B in self.by_layer else M for B, M in given]
            found[index] = tuple(zip((B for B, _ in given), accumulate(own, max), strict=True))
        return found


def settings_of(plan: Plan, layers: Sequence[int], min_gain: float = 0.0) -> RerouteConfig:
    """Return the settings that a plan stands for.

    Args:
        plan: The plan.
        layers: The decoder-layer indices in its order.
        min_gain: τ.
    """
    if isinstance(plan, int):
        return RerouteConfig(active_experts=plan, min_gain=min_gain)
    own = {index: {"active_experts": M} for index, M in zip(layers, plan, strict=True)}
    return RerouteConfig(layers=own, min_gain=min_gain)


def text_of(plan: Plan, min_gain: float = 0.0) -> str:
    """Return a plan as one word, and its least gain unless that is 0."""
    text = str(plan) if isinstance(plan, int) else "/".join(map(str, plan))
    return f"{text} gain={min_gain:g}" if min_gain else text
