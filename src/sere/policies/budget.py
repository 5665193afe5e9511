"""Budget: the experts that all rows together want most, and no more of them.

Source: "MoE-Spec", arXiv 2602.16052 (substitution and truncation); "Dynamic Expert Sharing", arXiv 2602.00879
(voting); docs/method.md section 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from sere.errors import ConfigError, did_you_mean
from sere.policies.base import LayerShape
from sere.policies.baseline import Baseline, LayerBatch, check_count
from sere.policies.gates import gate_sums, gates_from_scores
from sere.policies.idle import why_all_fit
from sere.policies.refill import drop_slots, refill
from sere.reroute import Routing
from sere.reroute.slots import places

Mode = Literal["substitute", "truncate"]


@dataclass(frozen=True)
class Budget(Baseline):
    """Keep the ``budget`` experts that have the largest summed gate in the batch, whatever a row's best is.

    Gates are summed over all real rows, those that did not choose the expert too, in integers; ties go to the
    lower id. Experts that no row chose do not count. Protected rows are no part of it: their experts stay,
    beside the budget.

    Attributes:
        budget: Experts per layer and step, at least 1.
        mode: ``"substitute"``: rows choose again inside the budget, and their weights are renormalized to
            their old sum. ``"truncate"``: other slots get weight 0; what is left keeps its weight.

    Raises:
        ConfigError: ``budget`` is not an integer of at least 1, or ``mode`` is unknown.
    """

    name: ClassVar[str] = "budget"
    source: ClassVar[str] = "arXiv 2602.16052 and 2602.00879"
    needs_scores: ClassVar[bool] = True
    example: ClassVar[str] = "budget=16"

    budget: int
    mode: Mode = "substitute"

    def __post_init__(self) -> None:
        check_count("budget", self.budget)
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode: got {self.mode!r}{did_you_mean(str(self.mode), get_args(Mode))}")

    def choose(self, batch: LayerBatch) -> Routing:
        """Elect the experts, then substitute or drop the others."""
        gates = gates_from_scores(batch, self.name)
        elected = self._elect(batch, gates)
        if self.mode == "substitute":
            return refill(batch, gates, elected)
        safe = torch.where(batch.inside, batch.ids.long(), 0)
        return drop_slots(batch, batch.valid & elected[safe], renormalize=False)

    def why_idle(self, layers: Iterable[LayerShape]) -> list[str]:
        """Return why the settings re-route nothing: the budget is E or more; see `Policy`."""
        return why_all_fit("budget", self.budget, layers)

    def _elect(self, batch: LayerBatch, gates: Tensor) -> Tensor:
        """Return the experts that stay, ``[E]`` bool."""
        chosen = batch.experts_in(batch.changeable)
        sums = torch.where(chosen, gate_sums(batch, gates), -1)
        rank = places(sums.argsort(descending=True, stable=True))
        return batch.protected_experts | (chosen & (rank < self.budget))
