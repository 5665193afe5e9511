"""Settings by layer: what may differ from layer to layer, and which experts are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sere.config.active_experts import ActiveExperts, read_active_experts
from sere.config.checks import (
    MOST_INT,
    as_integer,
    check_integer,
    check_layer_index,
    check_share,
    check_threshold,
)
from sere.errors import ConfigError, did_you_mean

OF_A_LAYER = ("select_top_k", "threshold", "active_experts", "min_gain")
"""The settings that may differ from layer to layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSettings:
    """What may differ from layer to layer; see `RerouteConfig`.

    Attributes:
        select_top_k: S.
        threshold: ρ.
        active_experts: M.
        min_gain: τ.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    select_top_k: int = 1
    threshold: float = 0.0
    active_experts: ActiveExperts = "auto"
    min_gain: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "select_top_k", check_integer("select_top_k", self.select_top_k, least=1))
        object.__setattr__(self, "threshold", check_threshold(self.threshold))
        object.__setattr__(self, "active_experts", read_active_experts(self.active_experts))
        object.__setattr__(self, "min_gain", check_share("min_gain", self.min_gain))


def read_by_layer(
    layers: object, active_experts: object
) -> tuple[Mapping[int, Mapping[str, Any]], ActiveExperts]:
    """Return checked settings by layer, each with the names that were given, and M of the other layers.

    Args:
        layers: ``{layer index: {"active_experts": 24}}``.
        active_experts: M of all layers, or ``{layer index: M}``, which belongs to the settings by layer; M
            of the other layers is then ``"auto"``.

    Raises:
        ConfigError: One has another form, a value is given twice, or a setting is unknown or invalid.
    """
    if not isinstance(active_experts, Mapping):
        return MappingProxyType(_read_layers(layers)), read_active_experts(active_experts)
    result = _read_layers(layers)
    for index, own in _by_index("active_experts", active_experts, "layer index: experts").items():
        if "active_experts" in result.get(index, {}):
            raise ConfigError(f"active_experts: layer {index} is named in layers, too; give one value")
        most = _of_layer(index, {"active_experts": own})
        result[index] = MappingProxyType({**result.get(index, {}), **most})
    return MappingProxyType(dict(sorted(result.items()))), "auto"


def _read_layers(given: object) -> dict[int, Mapping[str, Any]]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"layers: expected {{layer index: settings}}, got {given!r}")
    result: dict[int, Mapping[str, Any]] = {}
    for index, values in _by_index("layers", given, "layer index: settings").items():
        if not isinstance(values, Mapping):
            raise ConfigError(f'layers: expected settings such as {{"active_experts": 24}}, got {values!r}')
        for name in values:
            if name not in OF_A_LAYER:
                raise ConfigError(f"layers: unknown setting {name!r}{did_you_mean(str(name), OF_A_LAYER)}")
        result[index] = MappingProxyType(_of_layer(index, values))
    return dict(sorted(result.items()))


def _of_layer(index: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked values of one layer under their names."""
    try:
        checked = LayerSettings(**values)
    except ConfigError as error:
        raise ConfigError(f"layers: layer {index}: {error}") from None
    return {name: getattr(checked, name) for name in values}


def _by_index(name: str, given: Mapping[Any, Any], form: str) -> dict[int, Any]:
    """Return values by the index of their layer; keys in JSON are strings."""
    result: dict[int, Any] = {}
    for key, value in given.items():
        wrong = f"{{{form}}}, got the key {key!r}"
        index = check_layer_index(name, key, wrong, f"layer indices start at 0, got {key!r}")
        if index in result:
            raise ConfigError(f"{name}: layer {index} is named twice; give its settings once")
        result[index] = value
    return result


def read_keep(keep: object) -> Mapping[int, tuple[int, ...]]:
    """Return checked experts to keep, by layer: sorted, each once.

    Args:
        keep: ``{layer index: expert ids}``.

    Raises:
        ConfigError: It has another form, a layer is named twice, or an id is not an integer of at least 0.
    """
    if not isinstance(keep, Mapping):
        raise ConfigError(f"keep: expected {{layer index: [expert ids]}}, got {keep!r}")
    result: dict[int, tuple[int, ...]] = {}
    for layer, experts in keep.items():
        came = f"{layer!r}: {experts!r}"
        index = check_layer_index(
            "keep",
            layer,
            f"{{layer index: [expert ids]}}, got {came}",
            f"layer and expert ids start at 0, got {came}",
        )
        if index in result:
            raise ConfigError(f"keep: layer {index} is named twice; give its experts in one list")
        result[index] = _expert_ids(index, experts)
    return MappingProxyType(dict(sorted(result.items())))


def _expert_ids(layer: int, experts: object) -> tuple[int, ...]:
    if not isinstance(experts, Iterable) or isinstance(experts, str | bytes | Mapping):
        raise ConfigError(
            f"keep: layer {layer}: expected a list of expert ids, e.g. [3, 17]; got {experts!r}"
        )
    ids = set()
    for expert in experts:
        try:
            ids.add(as_integer(expert))
        except TypeError:
            raise ConfigError(
                f"keep: layer {layer}: expected expert ids (integers), got {expert!r}"
            ) from None
    kept = tuple(sorted(ids))
    if kept and kept[0] < 0:
        raise ConfigError(f"keep: layer and expert ids start at 0, got expert {kept[0]} of layer {layer}")
    if kept and kept[-1] > MOST_INT:
        raise ConfigError(f"keep: layer {layer}: expected expert ids up to {MOST_INT}, got {kept[-1]}")
    return kept
