"""XShare: a budget of experts for the batch, filled by summed gate.

Source: "XShare", arXiv 2602.07265; docs/method.md section 6.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sere.policies.gates import gates_from_scores
from sere.policies.rows import Choice, Rival, Rows, check_count, occurring, refill
from sere.reroute import Routing
from sere.reroute.slots import mass_units


class XShare(Rival):
    """Keep each row's top expert, add experts by summed gate up to ``budget``, choose again inside them.

    Each row takes its best K of them, and its weights are renormalized to their old sum. Rows' top experts
    are kept even where they alone exceed the budget. Gates are summed as integers (times 2^24, like masses),
    so that the order of addition cannot change the result; ties go to the lower id.

    Args:
        budget: Experts of a layer and step, at least 1.

    Raises:
        ConfigError: ``budget`` is no integer of at least 1.
    """

    name: ClassVar[str] = "xshare"
    needs_scores: ClassVar[bool] = True

    def __init__(self, budget: int) -> None:
        super().__init__()
        self.budget = check_count("budget", budget)

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return {"policy": self.name, "budget": self.budget}

    def choose(self, step: Choice) -> Routing:
        """Fill the budget, then choose again inside it."""
        gates = gates_from_scores(step, self.name)
        top = occurring(step, step.rows.valid & (step.rows.ranks < 1))
        return refill(step, gates, self._fill(step.rows, top, gates))

    def _fill(self, rows: Rows, chosen: Tensor, gates: Tensor) -> Tensor:
        """Add the experts of the largest summed gates until there are ``budget``; none without real rows."""
        units = mass_units(torch.where(rows.real[:, None], gates, 0.0)).sum(dim=0)
        order = torch.where(chosen, -1, units).argsort(descending=True, stable=True)
        place = torch.empty_like(order).scatter(0, order, torch.arange(rows.num_experts, device=order.device))
        room = self.budget - chosen.sum()
        return chosen | (~chosen & (place < room) & rows.real.any())
