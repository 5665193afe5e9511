"""XShare: a budget of experts for the batch, filled by summed gate.

Source: "XShare", arXiv 2602.07265; docs/method.md section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sere.policies.baseline import Baseline, LayerBatch, check_count
from sere.policies.gates import gates_from_scores
from sere.policies.refill import refill
from sere.reroute import Routing
from sere.reroute.slots import mass_units


@dataclass(frozen=True)
class XShare(Baseline):
    """Keep each row's top expert, add experts by summed gate up to ``budget``, choose again inside them.

    Each row takes its best K of them, and its weights are renormalized to their old sum. Rows' top experts
    are kept even if they alone exceed the budget. Gates are summed as integers (times 2^24, like masses),
    so that the order of addition cannot change the result; ties go to the lower id.

    Attributes:
        budget: Experts per layer and step, at least 1.

    Raises:
        ConfigError: ``budget`` is not an integer of at least 1.
    """

    name: ClassVar[str] = "xshare"
    source: ClassVar[str] = "arXiv 2602.07265"
    needs_scores: ClassVar[bool] = True
    example: ClassVar[str] = "budget=16"

    budget: int

    def __post_init__(self) -> None:
        check_count("budget", self.budget)

    def choose(self, batch: LayerBatch) -> Routing:
        """Fill the budget, then choose again inside it."""
        gates = gates_from_scores(batch, self.name)
        top = batch.experts_in(batch.valid & (batch.ranks < 1))
        return refill(batch, gates, self._fill(batch, top, gates))

    def _fill(self, batch: LayerBatch, chosen: Tensor, gates: Tensor) -> Tensor:
        """Add the experts of the largest summed gates until there are ``budget``; none without real rows."""
        units = mass_units(torch.where(batch.real[:, None], gates, 0.0)).sum(dim=0)
        order = torch.where(chosen, -1, units).argsort(descending=True, stable=True)
        rank = torch.empty_like(order).scatter(0, order, torch.arange(batch.num_experts, device=order.device))
        room = self.budget - chosen.sum()
        return chosen | (~chosen & (rank < room) & batch.real.any())
