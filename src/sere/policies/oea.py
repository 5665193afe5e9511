"""OEA, opportunistic expert activation: rows refill from what the others' best experts made active.

Source: "Opportunistic Expert Activation", arXiv 2511.02237; docs/method.md section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sere.policies.baseline import LayerBatch, TopSlotsBaseline
from sere.policies.gates import gates_from_scores
from sere.policies.refill import refill
from sere.reroute import Routing


@dataclass(frozen=True)
class Oea(TopSlotsBaseline):
    """Keep each row's ``select_top_k`` heaviest slots; refill up to K from the experts that any row kept.

    Each row refills in its own router's order, and its weights are renormalized to their old sum.

    Attributes:
        select_top_k: Slots per row that are kept, at least 1; the paper's k0.

    Raises:
        ConfigError: ``select_top_k`` is not an integer of at least 1.
    """

    name: ClassVar[str] = "oea"
    source: ClassVar[str] = "arXiv 2511.02237"
    needs_scores: ClassVar[bool] = True
    example: ClassVar[str] = "select_top_k=2"

    def choose(self, batch: LayerBatch) -> Routing:
        """Refill from the experts that kept slots make active."""
        gates = gates_from_scores(batch, self.name)
        return refill(batch, gates, batch.experts_in(batch.heaviest(self.select_top_k)))
