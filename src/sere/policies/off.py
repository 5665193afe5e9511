"""No re-routing: the baseline, with the same counting as the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sere.policies.baseline import Baseline, LayerBatch
from sere.reroute import Routing


@dataclass(frozen=True)
class Off(Baseline):
    """Keep the router's choice for every row, padding rows included; only count."""

    name: ClassVar[str] = "off"
    source: ClassVar[str] = "the baseline: the model's own routing"
    changes_routing: ClassVar[bool] = False

    def choose(self, batch: LayerBatch) -> Routing:
        """Return the router's own choice."""
        return Routing(batch.ids, batch.weights)
