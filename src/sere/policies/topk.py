"""Top-k reduction: drop a row's lighter slots. The plainest way to run fewer experts.

Source: METHOD.md section 6; the baseline "top-k" of SERE (ICLR 2026, arXiv 2602.07616).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sere.policies.base import count
from sere.policies.rows import Rival, check_slots, finish, heaviest, occurring, renormalised, sort_out
from sere.reroute import Routing


class TopK(Rival):
    """Keep the ``select_top_k`` heaviest slots of each row; the others get the row's heaviest id, weight 0.

    The kept weights are renormalised to the row's old sum.

    Args:
        select_top_k: Slots per row that are kept, at least 1.

    Raises:
        ConfigError: ``select_top_k`` is no integer of at least 1.
    """

    name: ClassVar[str] = "topk"

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
        scores: Tensor | None = None,  # noqa: ARG002 - other policies need them
        counters: Tensor | None = None,
    ) -> Routing:
        """Route one step of one layer; see ``Policy.route``."""
        rows = sort_out(topk_ids, topk_weights, self.experts(layer), row_budget, num_tokens)
        kept = heaviest(rows, self.select_top_k, row_budget)
        slot = torch.where(rows.valid, rows.ranks, rows.ranks.shape[1]).argmin(dim=1, keepdim=True)
        new_ids = torch.where(kept, topk_ids, topk_ids.gather(1, slot)).long()
        new_weights = renormalised(torch.where(kept, topk_weights.double(), 0.0), topk_weights, rows.valid)
        active = occurring(rows, topk_ids, kept)
        result = finish(rows, topk_ids, topk_weights, new_ids, new_weights, active)
        count(counters, topk_ids, result.ids, topk_weights, result.weights, real=rows.real, E=rows.E)
        return result
