"""Top-p: each row runs as many experts as its own gate needs.

Source: "Harder Tasks Need More Experts: Dynamic Routing in MoE Models", arXiv 2403.07652, within the slots
that the router chose; docs/method.md section 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from sere.errors import ConfigError
from sere.policies.base import LayerShape
from sere.policies.baseline import Baseline, LayerBatch, check_switch
from sere.policies.gates import gate_units
from sere.policies.refill import drop_slots
from sere.reroute import Routing


@dataclass(frozen=True)
class TopP(Baseline):
    """Keep each row's heaviest slots, as few as have the share ``p`` of its weight; drop the others.

    The others get the row's heaviest id, weight 0. Weights are summed in integers, in units of 2^-30; each
    counts as a number from 0 to 256. The heaviest slot always stays.

    Attributes:
        p: Share of a row's weight that stays at least, above 0 and at most 1.
        renormalize: Whether the weights that are left are scaled to the row's old sum.

    Raises:
        ConfigError: ``p`` is out of range, or ``renormalize`` is not a boolean.
    """

    name: ClassVar[str] = "topp"
    source: ClassVar[str] = "arXiv 2403.07652"
    example: ClassVar[str] = "p=0.8"

    p: float
    renormalize: bool = False

    def __post_init__(self) -> None:
        p = self.p
        if not isinstance(p, int | float) or isinstance(p, bool) or not 0 < p <= 1:
            raise ConfigError(f"p: expected a number above 0 and at most 1, got {p!r}")
        object.__setattr__(self, "p", float(p))
        check_switch("renormalize", self.renormalize)

    def choose(self, batch: LayerBatch) -> Routing:
        """Keep a slot if the heavier ones have less than the share."""
        units = gate_units(torch.where(batch.valid, batch.weights, 0))
        heavier = batch.valid[:, None, :] & (batch.ranks[:, None, :] < batch.ranks[:, :, None])
        before = torch.where(heavier, units[:, None, :], 0).sum(dim=2)
        needed = self.p * units.sum(dim=1, keepdim=True).double()
        # All of them at p = 1, those too that are less than a unit.
        kept = (batch.ranks == 0) | (before.double() < needed) | (self.p == 1)
        return drop_slots(batch, batch.valid & kept, renormalize=self.renormalize)

    def why_idle(self, layers: Iterable[LayerShape]) -> list[str]:
        """Return why the settings re-route nothing: every slot is needed; see `Policy`."""
        del layers
        return ["p=1 keeps every slot, so nothing will be re-routed; use a smaller p"] if self.p == 1 else []
