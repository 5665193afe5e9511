"""LYNX: drop the experts that the batch uses least.

Source: "Lynx: Enabling Efficient MoE Inference through Dynamic Batch-Aware Expert Selection",
arXiv 2411.08982 (later versions of the paper remap instead of dropping); docs/method.md section 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sere.errors import ConfigError
from sere.policies.base import LayerShape
from sere.policies.baseline import Baseline, LayerBatch
from sere.policies.gates import gates_from_scores
from sere.policies.idle import why_too_small
from sere.policies.refill import refill
from sere.reroute import Routing
from sere.reroute.slots import places


@dataclass(frozen=True)
class Lynx(Baseline):
    """Drop a share of the batch's experts, those in the fewest slots; choose again among the rest.

    Ties drop the higher id. Each row takes its best K of the rest, and its weights are renormalized to
    their old sum. One expert always stays. Protected rows do not count: their experts stay beside the others.

    Attributes:
        drop_share: Share of the active experts that are dropped, at least 0 and below 1; the number of
            experts is rounded down.

    Raises:
        ConfigError: ``drop_share`` is out of range.
    """

    name: ClassVar[str] = "lynx"
    source: ClassVar[str] = "arXiv 2411.08982"
    needs_scores: ClassVar[bool] = True
    example: ClassVar[str] = "drop_share=0.5"

    drop_share: float

    def __post_init__(self) -> None:
        share = self.drop_share
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < 1:
            raise ConfigError(f"drop_share: expected a number of at least 0 and below 1, got {share!r}")
        object.__setattr__(self, "drop_share", float(share))

    def choose(self, batch: LayerBatch) -> Routing:
        """Drop the least used experts, then choose again inside the rest."""
        return refill(batch, gates_from_scores(batch, self.name), self._kept(batch))

    def why_idle(self, layers: Iterable[LayerShape]) -> list[str]:
        """Return why the settings re-route nothing: the share is less than one expert; see `Policy`."""
        return why_too_small("drop_share", self.drop_share, layers)

    def _kept(self, batch: LayerBatch) -> Tensor:
        """Return the experts that stay, ``[E]`` bool."""
        E, ids = batch.num_experts, batch.ids
        index = torch.where(batch.changeable, ids.long(), E).flatten()
        uses = torch.zeros(E + 1, dtype=torch.int64, device=ids.device)
        uses = uses.scatter_add(0, index, torch.ones_like(index))[:E]
        active = uses > 0
        rank = places(uses.argsort(descending=True, stable=True))
        dropped = torch.floor(active.sum().double() * self.drop_share).long()
        return (active & (rank < active.sum() - dropped)) | batch.protected_experts
