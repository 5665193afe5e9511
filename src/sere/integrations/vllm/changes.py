"""What a change of settings may be, checked before any worker is asked: in time that grows with its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sere.config import RerouteConfig
from sere.config.change import CHANGEABLE as SETTINGS
from sere.config.change import changed
from sere.errors import ConfigError, did_you_mean

SWITCHES = ("enabled", "count_only")
CHANGEABLE = (*SETTINGS, *SWITCHES)

# What no model has, where the engine's config does not say.
_MOST_LAYERS, _MOST_EXPERTS = 4096, 65536
# JSON integers of this size and more are sent on as floats: messages between processes have 64 bits.
_WORD = 1 << 63


class ModelSize(NamedTuple):
    """What a change is checked against.

    Attributes:
        layers: Decoder layers; those without experts among them.
        experts: Most experts of a layer.
    """

    layers: int = _MOST_LAYERS
    experts: int = _MOST_EXPERTS

    @classmethod
    def of(cls, model_config: Any) -> ModelSize:
        """Return the size of a model; where it cannot be told, more than any model has.

        Args:
            model_config: vLLM's ``ModelConfig``, or None.
        """
        layers = getattr(getattr(model_config, "hf_text_config", None), "num_hidden_layers", None)
        try:
            experts = int(model_config.get_num_experts())
        except (AttributeError, TypeError, ValueError):
            experts = 0
        return cls(
            layers if isinstance(layers, int) and layers > 0 else _MOST_LAYERS, experts or _MOST_EXPERTS
        )


def check_names(changes: Mapping[str, Any]) -> None:
    """Refuse what cannot be changed while the engine runs.

    Raises:
        ConfigError: A name is another one (the text names the nearest), or a switch is not true or false.
    """
    for key, value in changes.items():
        if key not in CHANGEABLE:
            raise ConfigError(
                f"{key!r} cannot be changed while the engine runs{did_you_mean(str(key), CHANGEABLE)}; "
                "restart it with the new setting"
            )
        if key in SWITCHES and not isinstance(value, bool):
            raise ConfigError(f"{key}: expected true or false, got {value!r}")


def check_changes(changes: Mapping[str, Any], size: ModelSize) -> dict[str, Any]:
    """Check a change on its own: names, sizes, types and ranges. Whether it fits the table, workers say.

    Args:
        changes: As for `configure`, from JSON.
        size: The model's.

    Returns:
        The change, with numbers that every message between processes can carry.

    Raises:
        ConfigError: It is refused; the text says what was expected.
    """
    try:
        check_names(changes)
        for name in ("layers", "keep", "active_experts"):
            _check_layers(name, changes.get(name), size)
        if isinstance(changes.get("keep"), Mapping):
            _check_experts(changes["keep"], size)
        changed(RerouteConfig(), {name: value for name, value in changes.items() if name not in SWITCHES})
    except RecursionError:
        raise ConfigError(
            "settings: expected values such as 24, [3, 17] or {...}, got deeper nesting"
        ) from None
    return {name: _portable(value) for name, value in changes.items()}


def _check_layers(name: str, given: Any, size: ModelSize) -> None:
    """Refuse more layers than there are, before each is looked at."""
    if isinstance(given, Mapping) and len(given) > size.layers:
        raise ConfigError(f"{name}: the model has {size.layers} layers, got {len(given)} of them")


def _check_experts(keep: Mapping[str, Any], size: ModelSize) -> None:
    """Refuse more experts of a layer than there are, and ids that none has."""
    for layer, experts in keep.items():
        if not isinstance(experts, list):
            continue
        if len(experts) > size.experts:
            raise ConfigError(
                f"keep: layer {layer!r}: a layer has at most {size.experts} experts, got {len(experts)} ids"
            )
        wrong = next((one for one in experts if isinstance(one, int) and one >= size.experts), None)
        if wrong is not None:
            raise ConfigError(
                f"keep: layer {layer!r}: expected expert ids from 0 to {size.experts - 1}, got {wrong!r}"
            )


def _portable(value: Any) -> Any:
    """Return a checked value of a setting with integers of 64 bits; a larger one can only be a threshold."""
    if isinstance(value, dict):
        return {name: _portable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    if isinstance(value, int) and not -_WORD <= value < _WORD:
        return float(value)
    return value
