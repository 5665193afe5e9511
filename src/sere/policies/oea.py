"""OEA, opportunistic expert activation: rows refill from what the others' best experts made active.

Source: "Opportunistic Expert Activation", arXiv 2511.02237; METHOD.md section 6.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sere.policies.base import count
from sere.policies.gates import gates_from_scores
from sere.policies.rows import Rival, check_slots, heaviest, occurring, refill, sort_out
from sere.reroute import Routing


class Oea(Rival):
    """Keep each row's ``select_top_k`` heaviest slots; refill up to K from the experts so made active.

    Each row refills in its own router's order, and its weights are renormalised to their old sum.

    Args:
        select_top_k: Slots per row that are kept, at least 1; the paper's k0.

    Raises:
        ConfigError: ``select_top_k`` is no integer of at least 1.
    """

    name: ClassVar[str] = "oea"
    needs_scores: ClassVar[bool] = True

    def __init__(self, select_top_k: int) -> None:
        super().__init__()
        self.select_top_k = check_slots("select_top_k", select_top_k)

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return {"policy": self.name, "select_top_k": self.select_top_k}

    def route(
        self,
        layer: int,
        topk_ids: Tensor,
        topk_weights: Tensor,
        *,
        row_budget: Tensor | None = None,
        num_tokens: Tensor | int | None = None,
        scores: Tensor | None = None,
        counters: Tensor | None = None,
    ) -> Routing:
        """Route one step of one layer; see ``Policy.route``."""
        rows = sort_out(topk_ids, topk_weights, self.experts(layer), row_budget, num_tokens)
        gates = gates_from_scores(rows, topk_ids, topk_weights, scores, self.name)
        active = occurring(rows, topk_ids, heaviest(rows, self.select_top_k, row_budget))
        result = refill(rows, topk_ids, topk_weights, gates, active)
        count(counters, topk_ids, result.ids, topk_weights, result.weights, real=rows.real, E=rows.E)
        return result
