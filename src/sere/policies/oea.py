"""OEA, opportunistic expert activation: rows refill from what the others' best experts made active.

Source: "Opportunistic Expert Activation", arXiv 2511.02237; docs/method.md section 6.
"""

from __future__ import annotations

from typing import ClassVar

from sere.policies.gates import gates_from_scores
from sere.policies.rows import Choice, SlotRival, heaviest, occurring, refill
from sere.reroute import Routing


class Oea(SlotRival):
    """Keep each row's ``select_top_k`` heaviest slots; refill up to K from the experts so made active.

    Each row refills in its own router's order, and its weights are renormalized to their old sum.

    Args:
        select_top_k: Slots per row that are kept, at least 1; the paper's k0.

    Raises:
        ConfigError: ``select_top_k`` is no integer of at least 1.
    """

    name: ClassVar[str] = "oea"
    needs_scores: ClassVar[bool] = True

    def choose(self, step: Choice) -> Routing:
        """Refill from the experts that kept slots make active."""
        gates = gates_from_scores(step, self.name)
        return refill(step, gates, occurring(step, heaviest(step, self.select_top_k)))
