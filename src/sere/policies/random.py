"""Random re-routing: SERE with the similarities thrown away. The control that similarity must beat.

Source: docs/method.md section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sere.errors import ConfigError
from sere.policies.baseline import LayerBatch
from sere.policies.primary_set import PrimarySetBaseline
from sere.policies.refill import finish
from sere.reroute import Routing

# Constants of splitmix64 as signed numbers (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195).
_STEP, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


@dataclass(frozen=True)
class RandomReroute(PrimarySetBaseline):
    """Send every secondary slot to a random primary expert of the batch; weights are unchanged.

    As in SERE, nothing changes in a step without any primary expert.

    The choice is a hash of the seed, the layer, the number of the step and the slot: the same on every
    device, and without a generator whose state a compiler or a CUDA graph would not see. Each router counts
    its steps from 1 on.

    Attributes:
        select_top_k: S, slots per row that are primary, at least 1.
        active_experts: M, as in SERE: at equal settings both leave the same experts.
        tier: As in SERE.
        seed: Of the random choices.

    Raises:
        ConfigError: ``select_top_k`` is not an integer of at least 1, ``active_experts`` is not one of the
            forms of `RerouteConfig`, or ``seed`` is not an integer.
    """

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "the control that similarity must beat"
    example: ClassVar[str] = "select_top_k=2"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ConfigError(f"seed: expected an integer, got {self.seed!r}")

    def choose(self, batch: LayerBatch) -> Routing:
        """Draw a primary expert for every secondary slot."""
        ids, weights = batch.ids, batch.weights
        primary = self.primary_set(batch)
        listed = primary.long().argsort(descending=True, stable=True)
        draws = _hash(batch.step, batch.layer.index, self.seed, ids.shape)
        drawn = listed[draws % primary.sum().clamp(min=1)]
        safe = torch.where(batch.inside, ids.long(), 0)
        new_ids = torch.where(primary[safe], safe, drawn)
        result = finish(batch, new_ids, weights.double())
        # Without a primary expert nobody can take over a slot, and there is nothing to send padding to.
        some = primary.any()
        return Routing(torch.where(some, result.ids, ids), torch.where(some, result.weights, weights))


def _hash(step: Tensor, layer: int, seed: int, shape: torch.Size) -> Tensor:
    """Return pseudo-random integers from 0 on: splitmix64 of the step, layer, seed and slot."""
    slots = torch.arange(shape.numel(), device=step.device).reshape(shape)
    start = _mix(_mix(step + (seed * 1_000_003 & 0x7FFFFFFFFFFFFFFF)) + layer)
    return _mix(start + slots * _STEP) & 0x7FFFFFFFFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right as if unsigned: torch's shift of a negative number brings in ones."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
