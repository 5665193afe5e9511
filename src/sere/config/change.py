"""Settings that change while re-routing is on: the same words in every engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sere.config.reroute import RerouteConfig

# What any of these says replaces what the preset "paper" says.
_HOW_MANY = ("active_experts", "layers", "tier")
CHANGEABLE = ("select_top_k", "threshold", "min_gain", *_HOW_MANY, "keep")
"""Settings that compiled code and captured graphs read from memory, so that they can change in place."""


def changed(given: RerouteConfig, values: Mapping[str, Any]) -> RerouteConfig:
    """Return settings with other values.

    A tier replaces every M that was given, and an M replaces the tier. ``active_experts`` may be
    ``{layer index: M}``, for these layers only.

    Args:
        given: The settings as they were given so far.
        values: What is to change, names of ``CHANGEABLE``.

    Raises:
        ConfigError: A value is refused.
    """
    new = dict(values)
    if isinstance(new.get("active_experts"), Mapping):
        new["layers"] = _by_layer(new.get("layers", given.layers), new.pop("active_experts"))
    elif "active_experts" in new:
        new.setdefault("tier", None)
    if new.get("tier") is not None:
        new.setdefault("active_experts", "auto")
        new.setdefault("layers", without_active_experts(given.layers))
    if given.preset is not None and any(name in new for name in _HOW_MANY):
        new["preset"] = None
    return dataclasses.replace(given, **new)


def without_active_experts(layers: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return settings of single layers without M, which a tier brings."""
    kept = {
        index: {name: value for name, value in own.items() if name != "active_experts"}
        for index, own in layers.items()
    }
    return {index: own for index, own in kept.items() if own}


def _by_layer(layers: Any, active_experts: Mapping[Any, Any]) -> Any:
    """Return settings of single layers with M of some of them; what is no such setting is refused later."""
    if not isinstance(layers, Mapping) or not all(isinstance(own, Mapping) for own in layers.values()):
        return layers
    # Keys in JSON are strings.
    joined = {str(index): dict(own) for index, own in layers.items()}
    for index, most in active_experts.items():
        joined[str(index)] = joined.get(str(index), {}) | {"active_experts": most}
    return joined
