"""Random re-routing: SERE with the similarities thrown away. The control that similarity must beat.

Source: METHOD.md section 6.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sere.errors import ConfigError
from sere.policies.base import count
from sere.policies.rows import Rival, check_slots, finish, heaviest, occurring, sort_out
from sere.reroute import Routing

# Constants of splitmix64 as signed numbers (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195).
_STEP, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


class RandomReroute(Rival):
    """Send every secondary slot to a random primary expert of the batch; weights are unchanged.

    The choice is a hash of the seed, the layer, the number of the step and the slot: the same on every
    device, and without a generator whose state a compiler or a CUDA graph would not see.

    Args:
        select_top_k: S, slots per row that are primary, at least 1.
        seed: Of the random choices.

    Raises:
        ConfigError: ``select_top_k`` is no integer of at least 1, or ``seed`` no integer.
    """

    name: ClassVar[str] = "random"

    def __init__(self, select_top_k: int, *, seed: int = 0) -> None:
        super().__init__()
        self.select_top_k = check_slots("select_top_k", select_top_k)
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ConfigError(f"seed: expected an integer, got {seed!r}")
        self.seed = seed
        self._steps: dict[tuple[int, torch.device], Tensor] = {}

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return {"policy": self.name, "select_top_k": self.select_top_k, "seed": self.seed}

    def plan(self, layer: int, device: torch.device) -> Tensor:
        """Return the layer's step counter on a device, made at the first call."""
        found = self._steps.get((layer, device))
        if found is None:
            found = torch.zeros((), dtype=torch.int64, device=device)
            self._steps[layer, device] = found
        return found

    def route(
        self,
        layer: int,
        topk_ids: Tensor,
        topk_weights: Tensor,
        *,
        row_budget: Tensor | None = None,
        num_tokens: Tensor | int | None = None,
        scores: Tensor | None = None,  # noqa: ARG002 - other policies need them
        counters: Tensor | None = None,
    ) -> Routing:
        """Route one step of one layer; see ``Policy.route``."""
        rows = sort_out(topk_ids, topk_weights, self.experts(layer), row_budget, num_tokens)
        primary = occurring(rows, topk_ids, heaviest(rows, self.select_top_k, row_budget))
        size = primary.sum().clamp(min=1)
        step = self.plan(layer, topk_ids.device)
        step.add_(1)
        listed = primary.long().argsort(descending=True, stable=True)
        drawn = listed[_hash(step, layer, self.seed, topk_ids.shape) % size]
        safe = torch.where(rows.inside, topk_ids.long(), 0)
        new_ids = torch.where(primary[safe], safe, drawn)
        result = finish(rows, topk_ids, topk_weights, new_ids, topk_weights.double(), primary)
        count(counters, topk_ids, result.ids, topk_weights, result.weights, real=rows.real, E=rows.E)
        return result


def _hash(step: Tensor, layer: int, seed: int, shape: torch.Size) -> Tensor:
    """Return pseudo-random integers from 0 on: splitmix64 of the step, layer, seed and place."""
    places = torch.arange(shape.numel(), device=step.device).reshape(shape)
    start = _mix(_mix(step + seed * 1_000_003) + layer)
    return _mix(start + places * _STEP) & 0x7FFFFFFFFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right as unsigned: torch's shift of a negative number brings in ones."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
