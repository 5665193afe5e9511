"""No re-routing: the baseline, with the same counting as the others."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sere.policies.base import count
from sere.policies.rows import Rival, sort_out
from sere.reroute import Routing


class Off(Rival):
    """Leave every row as the router chose, padding rows included, and count."""

    name: ClassVar[str] = "off"

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return {"policy": self.name}

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
        """Return what came; see ``Policy.route``."""
        if counters is not None:
            E = self.experts(layer)
            real = sort_out(topk_ids, topk_weights, E, row_budget, num_tokens).real
            count(counters, topk_ids, topk_ids, topk_weights, topk_weights, real=real, E=E)
        return Routing(topk_ids, topk_weights)
