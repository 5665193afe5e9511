"""Settings by layer: what may differ from layer to layer, and which experts are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sere.config.active_experts import ActiveExperts, read_active_experts
from sere.config.checks import as_integer, check_integer, check_layer_index, check_threshold
from sere.errors import ConfigError, did_you_mean

OF_A_LAYER = ("select_top_k", "threshold", "active_experts")
"""The settings that may differ from layer to layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSettings:
    """What may differ from layer to layer; see `RerouteConfig`.

    Attributes:
        select_top_k: S.
        threshold: ρ.
        active_experts: M.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    select_top_k: int = 1
    threshold: float = 0.0
    active_experts: ActiveExperts = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "select_top_k", check_integer("select_top_k", self.select_top_k, least=1))
        object.__setattr__(self, "threshold", check_threshold(self.threshold))
        object.__setattr__(self, "active_experts", read_active_experts(self.active_experts))


def read_layers(given: object) -> Mapping[int, Mapping[str, Any]]:
    """Return checked settings by layer, each with the names that were given.

    Args:
        given: ``{layer index: {"active_experts": 24}}``.

    Raises:
        ConfigError: It has another form, a layer is named twice, or a setting is unknown or invalid.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"layers: expected {{layer index: settings}}, got {given!r}")
    result: dict[int, Mapping[str, Any]] = {}
    for key, values in given.items():
        index = _index("layers", key)
        if index in result:
            raise ConfigError(f"layers: layer {index} is named twice; give its settings once")
        if not isinstance(values, Mapping):
            raise ConfigError(f'layers: expected settings such as {{"active_experts": 24}}, got {values!r}')
        for name in values:
            if name not in OF_A_LAYER:
                raise ConfigError(f"layers: unknown setting {name!r}{did_you_mean(str(name), OF_A_LAYER)}")
        try:
            checked = LayerSettings(**values)
        except ConfigError as error:
            raise ConfigError(f"layers: layer {index}: {error}") from None
        result[index] = MappingProxyType({name: getattr(checked, name) for name in values})
    return MappingProxyType(dict(sorted(result.items())))


def with_active_experts(layers: object, active_experts: Mapping[Any, Any]) -> dict[int, dict[str, Any]]:
    """Return settings by layer, with M by layer among them.

    Args:
        layers: As `read_layers` takes them.
        active_experts: M by layer, ``{layer index: M}``.

    Raises:
        ConfigError: A layer's M is given twice, or one of the two has another form.
    """
    result = {index: dict(own) for index, own in read_layers(layers).items()}
    named = set()
    for key, value in active_experts.items():
        index = _index("active_experts", key, "layer index: experts")
        own = result.setdefault(index, {})
        if index in named or "active_experts" in own:
            raise ConfigError(f"active_experts: layer {index} has two values; give one")
        named.add(index)
        own["active_experts"] = value
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


def _index(name: str, key: object, form: str = "layer index: settings") -> int:
    return check_layer_index(
        name, key, f"{{{form}}}, got the key {key!r}", f"layer indices start at 0, got {key!r}"
    )


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
        if min(ids) < 0:
            raise ConfigError(f"keep: layer and expert ids start at 0, got expert {expert} of layer {layer}")
    return tuple(sorted(ids))
