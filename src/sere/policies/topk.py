"""Top-k reduction: drop a row's lighter slots. The plainest way to run fewer experts.

Source: docs/method.md section 6; the baseline "top-k" of SERE (ICLR 2026, arXiv 2602.07616).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sere.policies.baseline import LayerBatch, TopSlotsBaseline
from sere.policies.refill import drop_slots
from sere.reroute import Routing


@dataclass(frozen=True)
class TopK(TopSlotsBaseline):
    """Keep the ``select_top_k`` heaviest slots of each row; the others get the row's heaviest id, weight 0.

    The kept weights are renormalized to the row's old sum.

    Attributes:
        select_top_k: Slots per row that are kept, at least 1.

    Raises:
        ConfigError: ``select_top_k`` is not an integer of at least 1.
    """

    name: ClassVar[str] = "topk"
    source: ClassVar[str] = "plain top-k reduction"
    example: ClassVar[str] = "select_top_k=2"

    def choose(self, batch: LayerBatch) -> Routing:
        """Keep the heaviest slots, free the others."""
        return drop_slots(batch, batch.heaviest(self.select_top_k), renormalize=True)
