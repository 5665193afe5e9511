"""What the rules that SERE is compared with share: one batch sorted out, one choice for all rows, counted."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.errors import ConfigError
from sere.policies.base import LayerRouter, LayerShape, Policy
from sere.policies.idle import why_idle
from sere.reroute import COUNTERS, Routing, TokenBatch
from sere.reroute.checks import check_batch
from sere.reroute.constants import LIMIT_ROWS
from sere.reroute.slots import (
    choose_primary,
    expert_masses,
    has_weight,
    members,
    real_rows,
    weight_ranks,
    whole_budgets,
)


@dataclass(frozen=True, slots=True)
class LayerBatch:
    """One step of one layer, its rows and slots sorted out; docs/method.md section 4, steps 1 and 2.

    Attributes:
        layer: The layer.
        ids: Expert ids, ``[T, K]``, int32 or int64.
        weights: Gate weights, ``[T, K]``, floating point.
        row_budgets: ``[T]``, integers, or None.
        scores: ``[T, E]``, the router's scores of all experts, or None.
        step: int64 of shape ``[]``: the number of this call of the layer's router, from 1 on.
        prepared: What the rule prepared for the layer, by name.
        real: ``[T]``, bool; rows that are not padding.
        protected: ``[T]``, bool; real rows with a budget of K or more.
        inside: ``[T, K]``, bool; slots with an id in [0, E).
        valid: ``[T, K]``, bool; such slots of real rows whose weight is neither 0 nor NaN.
        ranks: ``[T, K]``, int64; 0 for a row's heaviest valid slot (ties: the lower slot).
    """

    layer: LayerShape
    ids: Tensor
    weights: Tensor
    row_budgets: Tensor | None
    scores: Tensor | None
    step: Tensor
    prepared: Mapping[str, Tensor]
    real: Tensor
    protected: Tensor
    inside: Tensor
    valid: Tensor
    ranks: Tensor

    @classmethod
    def of(
        cls, layer: LayerShape, batch: TokenBatch, step: Tensor, prepared: Mapping[str, Tensor]
    ) -> LayerBatch:
        """Tell real rows and valid slots of a checked batch from the others."""
        ids, weights, budgets, num_tokens, scores = batch
        real = real_rows(ids, budgets, num_tokens)
        protected = torch.zeros_like(real) if budgets is None else real & (budgets >= ids.shape[1])
        inside = (ids >= 0) & (ids < layer.num_experts)
        valid = inside & has_weight(weights) & real[:, None]
        ranks = weight_ranks(weights, valid)
        return cls(
            layer, ids, weights, budgets, scores, step, prepared, real, protected, inside, valid, ranks
        )

    @property
    def num_experts(self) -> int:
        """E, the layer's routed experts."""
        return self.layer.num_experts

    def heaviest(self, select_top_k: Tensor | int) -> Tensor:
        """Return the valid slots among each row's b_t heaviest, ``[T, K]`` bool."""
        budgets = whole_budgets(self.row_budgets, select_top_k, len(self.ids), self.ids.device)
        return self.valid & (self.ranks < budgets[:, None])

    @property
    def open_rows(self) -> Tensor:
        """The real rows that are not protected, ``[T]`` bool: a rule decides by these alone."""
        return self.real & ~self.protected

    @property
    def changeable(self) -> Tensor:
        """The valid slots of these rows, ``[T, K]`` bool."""
        return self.valid & self.open_rows[:, None]

    @property
    def protected_experts(self) -> Tensor:
        """The experts of protected rows, ``[E]`` bool: they run in any case, beside what a rule leaves."""
        return members(self.ids, self.valid & self.protected[:, None], self.num_experts)

    def experts_in(self, slots: Tensor) -> Tensor:
        """Return the experts in the chosen valid slots, ``[E]`` bool."""
        return members(self.ids, slots, self.num_experts)

    def primary_set(self, limits: Tensor, sensitivity: Tensor) -> Tensor:
        """Return SERE's primary set, ``[E]`` bool; docs/method.md section 4, step 3.

        Args:
            limits: What `sere.reroute.limits.layer_limits` returns: S and M of the layer first.
            sensitivity: ``[E]``, float32, in (0, 1].
        """
        slots = self.changeable
        rows = self.open_rows.sum().clamp(1, LIMIT_ROWS)
        return self.protected_experts | choose_primary(
            torch.zeros(self.num_experts, dtype=torch.bool, device=self.ids.device),
            self.experts_in(self.heaviest(limits[0]) & slots),
            self.experts_in(slots),
            expert_masses(self.ids, self.weights, slots, sensitivity),
            limits.index_select(0, rows[None])[0],
            cap=False,
        )


@dataclass(frozen=True)
class Baseline(Policy):
    """A rule that chooses experts for all rows of a step at once, in PyTorch operations.

    Its settings are the fields of a frozen dataclass, which is what the command line and records read.
    """

    def prepare(self, layer: LayerShape) -> Mapping[str, Tensor]:
        """Return tensors on the CPU that the rule needs for one layer, by name; none unless it says so.

        Args:
            layer: The layer.
        """
        del layer
        return {}

    @abstractmethod
    def choose(self, batch: LayerBatch) -> Routing:
        """Return new ids and weights for one step; ``sere.policies.refill`` has what rules share.

        Rows that are protected, and slots that are not valid, must keep what they have.
        """

    def bind(self, layer: LayerShape, device: torch.device) -> BaselineRouter:
        """Return the router of one layer."""
        return BaselineRouter(self, layer, device)

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        options = [one.name for one in fields(self) if one.name not in self.given_elsewhere]
        return {"policy": self.name} | {name: getattr(self, name) for name in options}


@dataclass(frozen=True)
class TopSlotsBaseline(Baseline):
    """A baseline that starts from each row's heaviest slots.

    Attributes:
        select_top_k: Slots per row that are kept, at least 1; a row's own budget goes before it.

    Raises:
        ConfigError: ``select_top_k`` is not an integer of at least 1.
    """

    select_top_k: int

    def __post_init__(self) -> None:
        check_count("select_top_k", self.select_top_k)

    def why_idle(self, layers: Iterable[LayerShape]) -> list[str]:
        """Return why the settings re-route nothing: S is K or more; see `Policy`."""
        return why_idle(RerouteConfig(select_top_k=self.select_top_k, active_experts=0), layers)


class BaselineRouter(LayerRouter):
    """One layer of a baseline: checks a step, lets the rule choose, and counts.

    Attributes:
        step: int64 of shape ``[]``, how often the router was called.
        prepared: What the rule prepared for the layer, by name, on the device.
    """

    def __init__(self, policy: Baseline, layer: LayerShape, device: torch.device) -> None:
        super().__init__(layer, device)
        self.policy = policy
        with torch.inference_mode(False):
            self.step = torch.zeros((), dtype=torch.int64, device=device)
            self.prepared = {name: tensor.to(device) for name, tensor in policy.prepare(layer).items()}

    def __call__(self, batch: TokenBatch) -> Routing:
        """Route one step; see `LayerRouter`."""
        check_batch(batch, self.counters)
        self.step.add_(1)
        step = LayerBatch.of(self.layer, batch, self.step, self.prepared)
        result = self.policy.choose(step)
        self.counters.add_(_counts(step, result))
        return result

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that a step reads or writes, by name."""
        return super().tensors() | {"step": self.step} | self.prepared


def _counts(batch: LayerBatch, result: Routing) -> Tensor:
    """Return what one step adds to the counters; slots of weight 0 or NaN read no expert that counts."""
    E = batch.num_experts
    used = (result.ids >= 0) & (result.ids < E) & has_weight(result.weights) & batch.real[:, None]
    sums = {
        "steps": batch.real.any(),
        "rows": batch.real.sum(),
        "distinct_before": members(batch.ids, batch.valid, E).sum(),
        "distinct_after": members(result.ids, used, E).sum(),
        "slots": batch.valid.sum(),
        "slots_rerouted": (batch.valid & (result.ids != batch.ids)).sum(),
        "slots_computed": (batch.valid & (result.weights != 0)).sum(),
        "critical": torch.zeros((), dtype=torch.int64, device=batch.ids.device),
    }
    return torch.stack([sums[name].long() for name in COUNTERS])


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Refuse a setting that is not a number of slots or experts.

    Args:
        name: The setting.
        value: Its value.
        least: The least number that is allowed.

    Raises:
        ConfigError: It is not an integer of at least ``least``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}: expected an integer of at least {least}, got {value!r}")


def check_switch(name: str, value: object) -> None:
    """Refuse a setting that is neither true nor false.

    Args:
        name: The setting.
        value: Its value.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: expected true or false, got {value!r}")
