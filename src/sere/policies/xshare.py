"""XShare: a budget of experts for the batch, filled by summed gate.

Source: "XShare", arXiv 2602.07265; docs/method.md section 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sere.policies.base import LayerShape
from sere.policies.baseline import Baseline, LayerBatch, check_count
from sere.policies.gates import gate_sums, gates_from_scores
from sere.policies.idle import why_all_fit
from sere.policies.refill import refill
from sere.reroute import Routing
from sere.reroute.slots import places


@dataclass(frozen=True)
class XShare(Baseline):
    """Keep each row's top expert, add experts by summed gate up to ``budget``, choose again inside them.

    Each row takes its best K of them, and its weights are renormalized to their old sum. Rows' top experts
    are kept even if they alone exceed the budget. Protected rows are no part of it: their experts stay,
    beside the budget. Gates are summed in integers, so that the order of addition cannot change the result;
    ties go to the lower id.

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
        top = batch.experts_in(batch.changeable & (batch.ranks < 1))
        return refill(batch, gates, batch.protected_experts | self._fill(batch, top, gates))

    def why_idle(self, layers: Iterable[LayerShape]) -> list[str]:
        """Return why the settings re-route nothing: the budget is E or more; see `Policy`."""
        return why_all_fit("budget", self.budget, layers)

    def _fill(self, batch: LayerBatch, chosen: Tensor, gates: Tensor) -> Tensor:
        """Add the experts of the largest summed gates until there are ``budget``; none without such rows."""
        sums = gate_sums(batch, gates)
        order = torch.where(chosen, -1, sums).argsort(descending=True, stable=True)
        rank = places(order)
        room = self.budget - chosen.sum()
        return chosen | (~chosen & (rank < room) & batch.open_rows.any())
