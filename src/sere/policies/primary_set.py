"""What controls share that leave the same experts as SERE: its settings, and its primary set.

Source: docs/method.md sections 4 and 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sere.config import ActiveExperts, RerouteConfig
from sere.errors import ConfigError
from sere.policies.base import LayerShape
from sere.policies.baseline import LayerBatch, TopSlotsBaseline
from sere.policies.idle import all_fit, why_idle
from sere.reroute.limits import layer_limits
from sere.table import SimilarityTable


@dataclass(frozen=True)
class PrimarySetBaseline(TopSlotsBaseline):
    """A baseline that leaves the experts that SERE's primary set has at equal settings.

    Attributes:
        select_top_k: S, slots per row that are primary, at least 1; a row's own budget goes before it.
        active_experts: M, as in `RerouteConfig`.
        tier: The tier of the table that ``"auto"`` means, as in `RerouteConfig`.
        resolved: The settings in which the table's tier is replaced by its numbers; None without a table.
        sensitivities: The table's by decoder-layer index; a layer without any has 1 for each expert.

    Raises:
        ConfigError: A setting has the wrong type or is out of range.
    """

    given_elsewhere: ClassVar[frozenset[str]] = frozenset({"resolved", "sensitivities"})

    select_top_k: int = 1
    active_experts: ActiveExperts = "auto"
    tier: str | None = field(default=None, kw_only=True)
    resolved: RerouteConfig | None = field(default=None, kw_only=True, repr=False)
    sensitivities: Mapping[int, Tensor] = field(default_factory=dict, kw_only=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "active_experts", self._as_given().active_experts)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], table: SimilarityTable | None) -> Self:
        """Build the rule from its options and the table, whose tiers they may name."""
        rule = cls(**options)
        if table is None:
            return rule
        measured = {i: one.sensitivity for i, one in table.layers.items() if one.sensitivity is not None}
        return replace(rule, resolved=table.settings(rule._as_given()), sensitivities=measured)

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values, a tier as its numbers."""
        values = self.settings.to_mapping()
        found = {name: values[name] for name in ("select_top_k", "active_experts", "tier", "layers")}
        return super().describe() | found

    @property
    def settings(self) -> RerouteConfig:
        """The settings as SERE would have them.

        Raises:
            ConfigError: They name a tier, and there was no table.
        """
        if self.resolved is not None:
            return self.resolved
        if self.tier is not None:
            raise ConfigError(
                f"tier: policy {self.name!r} has no table that would say what tier {self.tier!r} is; give one"
            )
        return self._as_given()

    def prepare(self, layer: LayerShape) -> Mapping[str, Tensor]:
        """Return S and M by the number of rows and the sensitivities, as kernels of SERE read them."""
        E, own = layer.num_experts, self.settings.for_layer(layer.index)
        sensitivity = self.sensitivities.get(layer.index, torch.ones(E, device="cpu"))
        return {"limits": layer_limits(own, E, layer.top_k), "sensitivity": sensitivity}

    def primary_set(self, batch: LayerBatch) -> Tensor:
        """Return the primary set of one step, ``[E]`` bool."""
        return batch.primary_set(batch.prepared["limits"], batch.prepared["sensitivity"])

    def why_idle(self, layers: Iterable[LayerShape]) -> list[str]:
        """Return why the settings re-route nothing: S is K or more, or M is E; see `Policy`."""
        return why_idle(self.settings, layers)

    def never_reroutes(self, rows: int, layers: Iterable[LayerShape]) -> bool:
        """Whether M is always enough for what the rows choose; see `Policy`."""
        return all_fit({layer: self.prepare(layer)["limits"].tolist() for layer in layers}, rows)

    def _as_given(self) -> RerouteConfig:
        return RerouteConfig(
            select_top_k=self.select_top_k, active_experts=self.active_experts, tier=self.tier
        )
