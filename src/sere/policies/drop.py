"""Drop: SERE's primary set, without a substitute for the others. The control that says what those are worth.

Source: docs/method.md section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sere.policies.baseline import LayerBatch, check_switch
from sere.policies.primary_set import PrimarySetBaseline
from sere.policies.refill import drop_slots
from sere.reroute import Routing


@dataclass(frozen=True)
class Drop(PrimarySetBaseline):
    """Drop every secondary slot: weight 0, and the id of the row's heaviest primary slot.

    A row without a primary slot gets the lowest expert that runs. As in SERE, nothing changes in a step
    without any primary expert.

    Attributes:
        select_top_k: S, slots per row that are primary, at least 1.
        active_experts: M, as in SERE: at equal settings both leave the same experts.
        tier: As in SERE.
        renormalize: Whether the weights that are left are scaled to the row's old sum.

    Raises:
        ConfigError: ``select_top_k`` is not an integer of at least 1, ``active_experts`` is not one of the
            forms of `RerouteConfig`, or ``renormalize`` is not a boolean.
    """

    name: ClassVar[str] = "drop"
    source: ClassVar[str] = "the control that says what similarity is worth"
    example: ClassVar[str] = "select_top_k=2"

    renormalize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_switch("renormalize", self.renormalize)

    def choose(self, batch: LayerBatch) -> Routing:
        """Keep the slots of primary experts."""
        safe = torch.where(batch.inside, batch.ids.long(), 0)
        return drop_slots(batch, batch.valid & self.primary_set(batch)[safe], renormalize=self.renormalize)
