"""Tiers: the settings that a table recommends, each with a name and with what they were chosen by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Self

from sere.config import ActiveExperts, LayerSettings, RerouteConfig
from sere.config.layers import OF_A_LAYER
from sere.errors import ConfigError, did_you_mean, name_some

DEFAULT_TIER = "balanced"
"""The tier that settings mean which name none."""

GAINS_LEFT_OUT = (
    "least gains of the table's tiers are left out: all slots are computed here, so that giving some up "
    "would save no time (min_gain=X applies one all the same)"
)
"""What is logged where `SimilarityTable.without_gains` changed the table."""

# A name stands in settings such as ``sere:tier=fast``.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Tier:
    """Recommended settings: how many experts a layer reads in a step, and the evidence for it.

    Attributes:
        name: ``"safe"``, ``"balanced"``, ``"fast"`` or a user's own.
        active_experts: M for all layers; see `RerouteConfig`.
        layers: The settings of the layers that differ, by decoder-layer index: ``{"active_experts": 24}``, of
            any of ``OF_A_LAYER``. M alone may be given in its place.
        select_top_k: S.
        threshold: ρ.
        min_gain: τ.
        evidence: What was measured and how; JSON-ready.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    name: str
    active_experts: ActiveExperts
    layers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    select_top_k: int = 1
    threshold: float = 0.0
    min_gain: float = 0.0
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigError(
                "tier: expected a name of letters, digits, dots, '-' and '_', such as 'fast', "
                f"got {self.name!r}"
            )
        try:
            self._check()
        except ConfigError as error:
            raise ConfigError(f"tier {self.name!r}: {error}") from error

    def _check(self) -> None:
        if not isinstance(self.layers, Mapping):
            raise ConfigError(f"layers: expected {{layer index: settings}}, got {self.layers!r}")
        if not isinstance(self.evidence, Mapping):
            raise ConfigError(f"evidence: expected names and values, got {self.evidence!r}")
        own = LayerSettings(
            select_top_k=self.select_top_k,
            threshold=self.threshold,
            active_experts=self.active_experts,
            min_gain=self.min_gain,
        )
        given = {
            index: one if isinstance(one, Mapping) else {"active_experts": one}
            for index, one in self.layers.items()
        }
        for name in OF_A_LAYER:
            object.__setattr__(self, name, getattr(own, name))
        object.__setattr__(self, "layers", RerouteConfig(layers=given).layers)
        try:
            evidence = json.loads(json.dumps(dict(self.evidence), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"evidence: expected values that JSON can hold ({error})") from error
        object.__setattr__(self, "evidence", MappingProxyType(evidence))

    def settings(self, config: RerouteConfig) -> RerouteConfig:
        """Return settings with what this tier says where they leave it open.

        Args:
            config: The settings. What differs from the defaults stays: ``select_top_k``, ``threshold``,
                ``active_experts``, ``min_gain``, and the settings of single layers. Without factors there is
                no gain.
        """
        defaults = RerouteConfig()
        open_ = [name for name in OF_A_LAYER if getattr(config, name) == getattr(defaults, name)]
        if config.use_scale is False:
            open_ = [name for name in open_ if name != "min_gain"]
        layers = {
            index: {name: value for name, value in own.items() if name in open_}
            for index, own in self.layers.items()
        }
        for index, given in config.layers.items():
            layers[index] = {**layers.get(index, {}), **given}
        taken = {name: getattr(self, name) for name in open_}
        layers = {index: own for index, own in layers.items() if own}
        return replace(config, tier=self.name, layers=layers, **taken)

    def without_gain(self) -> Self:
        """Return the same tier with a τ of 0, also in its layers."""
        layers = {
            index: {name: value for name, value in own.items() if name != "min_gain"}
            for index, own in self.layers.items()
        }
        return replace(self, layers={index: own for index, own in layers.items() if own}, min_gain=0.0)

    def for_layer(self, index: int) -> LayerSettings:
        """Return the settings of one layer.

        Args:
            index: Decoder-layer index.
        """
        own = {name: getattr(self, name) for name in OF_A_LAYER}
        return LayerSettings(**own | dict(self.layers.get(index, {})))

    def to_mapping(self) -> dict[str, Any]:
        """Return all values but the name, JSON-ready; `from_mapping` reads them back."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        values["active_experts"] = _as_json(self.active_experts)
        # A file of before other settings differed by layer holds M alone in their place.
        values["layers"] = {
            str(index): {name: _as_json(value) for name, value in own.items()}
            for index, own in self.layers.items()
        }
        return values | {"evidence": dict(self.evidence)}

    @classmethod
    def from_mapping(cls, name: str, values: object) -> Self:
        """Build from what `to_mapping` returned.

        Raises:
            ConfigError: A value is missing, unknown, of the wrong type or out of range.
        """
        if not isinstance(values, Mapping) or "active_experts" not in values:
            raise ConfigError(f"tier {name!r}: expected its settings with active_experts, got {values!r}")
        known = [f.name for f in fields(cls) if f.name != "name"]
        for key in values:
            if key not in known:
                raise ConfigError(f"tier {name!r}: unknown setting {key!r}{did_you_mean(str(key), known)}")
        return cls(name, **values)


def resolve(config: RerouteConfig, tiers: Mapping[str, Tier]) -> RerouteConfig:
    """Return settings in which a tier is replaced by the numbers that it stands for.

    Args:
        config: The settings.
        tiers: The table's tiers by name.

    Returns:
        With ``tier``, that tier's numbers. Without, and with ``active_experts="auto"`` outside of the preset
        ``"paper"``, those of ``"balanced"`` if there is such a tier; else the settings as they are.

    Raises:
        ConfigError: ``tier`` names one that does not exist; the text names those that do.
    """
    name = config.tier
    if name is None and config.preset is None and config.active_experts == "auto" and DEFAULT_TIER in tiers:
        name = DEFAULT_TIER
    if name is None:
        return config
    if name not in tiers:
        there = f"it has {name_some(list(tiers))}" if tiers else "it has none; sere tune makes them"
        raise ConfigError(f"tier: the table has no tier {name!r}; {there}")
    return tiers[name].settings(config)


def tiers_from_json(values: object) -> dict[str, Tier]:
    """Return the tiers that a file's header holds, by name.

    Raises:
        ConfigError: They are not valid; the text names the tier.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"tiers: expected settings by tier name, got {values!r}")
    return {name: Tier.from_mapping(name, one) for name, one in values.items()}


def _as_json(value: ActiveExperts) -> Any:
    return [list(point) for point in value] if isinstance(value, tuple) else value
