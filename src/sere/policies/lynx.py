"""LYNX: drop the experts that the batch uses least.

Source: "Lynx: Enabling Efficient MoE Inference through Dynamic Batch-Aware Expert Selection",
arXiv 2411.08982 (later versions of the paper remap instead of dropping); docs/method.md section 6.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sere.errors import ConfigError
from sere.policies.gates import gates_from_scores
from sere.policies.rows import Choice, Rival, occurring, refill
from sere.reroute import Routing


class Lynx(Rival):
    """Drop a share of the batch's experts, those in the fewest slots; choose again inside the rest.

    Ties drop the higher id. Each row takes its best K of the rest, and its weights are renormalized to
    their old sum. Experts of protected rows are never dropped, and one expert always stays.

    Args:
        drop_share: Share of the active experts that are dropped, at least 0 and below 1; rounded down.

    Raises:
        ConfigError: ``drop_share`` is out of range.
    """

    name: ClassVar[str] = "lynx"
    needs_scores: ClassVar[bool] = True

    def __init__(self, drop_share: float) -> None:
        super().__init__()
        if not isinstance(drop_share, int | float) or isinstance(drop_share, bool) or not 0 <= drop_share < 1:
            raise ConfigError(f"drop_share: expected a number of at least 0 and below 1, got {drop_share!r}")
        self.drop_share = float(drop_share)

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return {"policy": self.name, "drop_share": self.drop_share}

    def choose(self, step: Choice) -> Routing:
        """Drop the least used experts, then choose again inside the rest."""
        return refill(step, gates_from_scores(step, self.name), self._kept(step))

    def _kept(self, step: Choice) -> Tensor:
        """Return the experts that stay, ``[E]`` bool."""
        rows, ids = step.rows, step.ids
        index = torch.where(rows.valid, ids.long(), rows.num_experts).flatten()
        uses = torch.zeros(rows.num_experts + 1, dtype=torch.int64, device=ids.device)
        uses = uses.scatter_add(0, index, torch.ones_like(index))[: rows.num_experts]
        active = uses > 0
        # Protected experts stand first, the most used next, the idle last.
        protected = occurring(step, torch.zeros_like(rows.valid))
        order = (uses + protected.long() * (index.numel() + 1)).argsort(descending=True, stable=True)
        place = torch.empty_like(order).scatter(0, order, torch.arange(rows.num_experts, device=ids.device))
        dropped = torch.floor(active.sum().double() * self.drop_share).long()
        return (active & (place < active.sum() - dropped)) | protected
