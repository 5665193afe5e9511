"""Random re-routing: SERE with the similarities thrown away. The control that similarity must beat.

Source: docs/method.md section 6.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sere.errors import ConfigError
from sere.policies.rows import Choice, SlotRival, check_count, finish, heaviest, occurring
from sere.reroute import Routing
from sere.reroute.slots import fill_up

# Constants of splitmix64 as signed numbers (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195).
_STEP, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


class RandomReroute(SlotRival):
    """Send every secondary slot to a random primary expert of the batch; weights are unchanged.

    As in SERE, nothing changes in a step without any primary expert.

    The choice is a hash of the seed, the layer, the number of the step and the slot: the same on every
    device, and without a generator whose state a compiler or a CUDA graph would not see.

    Args:
        select_top_k: S, slots per row that are primary, at least 1.
        min_active: Least size of the primary set, as in SERE: at equal settings both leave the same experts.
        seed: Of the random choices.

    Raises:
        ConfigError: ``select_top_k`` is no integer of at least 1, ``min_active`` none of at least 0, or
            ``seed`` no integer.
    """

    name: ClassVar[str] = "random"

    def __init__(self, select_top_k: int, *, min_active: int = 0, seed: int = 0) -> None:
        super().__init__(select_top_k)
        self.min_active = min_active and check_count("min_active", min_active)
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ConfigError(f"seed: expected an integer, got {seed!r}")
        self.seed = seed
        self._steps: dict[tuple[int, torch.device], Tensor] = {}

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return super().describe() | {"min_active": self.min_active, "seed": self.seed}

    def plan(self, layer: int, device: torch.device) -> Tensor:
        """Return the layer's step counter on a device, made at the first call."""
        found = self._steps.get((layer, device))
        if found is None:
            found = torch.zeros((), dtype=torch.int64, device=device)
            self._steps[layer, device] = found
        return found

    def choose(self, step: Choice) -> Routing:
        """Draw a primary expert for every secondary slot."""
        rows, ids = step.rows, step.ids
        primary = occurring(step, heaviest(step, self.select_top_k))
        if self.min_active:
            wanted = occurring(step, rows.valid)
            primary = primary | fill_up(primary, wanted, ids, step.weights, rows.valid, self.min_active)
        number = self.plan(step.layer, ids.device)
        number.add_(1)
        listed = primary.long().argsort(descending=True, stable=True)
        drawn = listed[_hash(number, step.layer, self.seed, ids.shape) % primary.sum().clamp(min=1)]
        safe = torch.where(rows.inside, ids.long(), 0)
        new_ids = torch.where(primary[safe], safe, drawn)
        result = finish(step, new_ids, step.weights.double())
        # Without a primary expert nobody can take over a slot, and there is nothing to send padding to.
        some = primary.any()
        return Routing(torch.where(some, result.ids, ids), torch.where(some, result.weights, step.weights))


def _hash(step: Tensor, layer: int, seed: int, shape: torch.Size) -> Tensor:
    """Return pseudo-random integers from 0 on: splitmix64 of the step, layer, seed and place."""
    places = torch.arange(shape.numel(), device=step.device).reshape(shape)
    start = _mix(_mix(step + (seed * 1_000_003 & 0x7FFFFFFFFFFFFFFF)) + layer)
    return _mix(start + places * _STEP) & 0x7FFFFFFFFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right as if unsigned: torch's shift of a negative number brings in ones."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
