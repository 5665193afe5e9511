"""Apply changed settings in one worker, between two steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sere.config import RerouteConfig
from sere.errors import ConfigError, SereError, did_you_mean
from sere.integrations.vllm.worker.rules import without_active_experts
from sere.integrations.vllm.worker.start_log import warn_of_settings
from sere.integrations.vllm.worker.state import WorkerState

_SWITCHES = ("enabled", "count_only")
# What any of these says replaces what the preset "paper" says.
_HOW_MANY = ("active_experts", "layers", "tier")
CHANGEABLE = ("select_top_k", "threshold", *_HOW_MANY, "keep", *_SWITCHES)


def change(state: WorkerState, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply changes in one worker, all or none.

    Errors are returned, not raised, because they are the caller's and must not end the engine.

    Args:
        state: The worker's state.
        changes: As for `configure`.

    Returns:
        The new settings, or ``{"error": text}``.
    """
    try:
        _apply(state, changes)
    except SereError as error:
        return {"error": str(error)}
    return state.config.to_mapping() | {name: getattr(state, name) for name in _SWITCHES}


def _apply(state: WorkerState, changes: Mapping[str, Any]) -> None:
    for key in changes:
        if key not in CHANGEABLE:
            raise ConfigError(
                f"{key!r} cannot be changed while the engine runs{did_you_mean(str(key), CHANGEABLE)}; "
                "restart it with the new setting"
            )
    switches = {name: changes.get(name, getattr(state, name)) for name in _SWITCHES}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name}: expected true or false, got {value!r}")
    values = {name: value for name, value in changes.items() if name not in _SWITCHES}
    state.change(changed(state.given, values), **switches)
    if state.enabled and state.speaks:
        warn_of_settings(state)


def changed(given: RerouteConfig, values: Mapping[str, Any]) -> RerouteConfig:
    """Return settings with other values.

    A tier replaces every M that was given, and an M replaces the tier. ``active_experts`` may be
    ``{layer index: M}``, for these layers only.

    Args:
        given: The settings as they were given so far.
        values: What is to change.

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


def _by_layer(layers: Any, active_experts: Mapping[Any, Any]) -> Any:
    """Return settings of single layers with M of some of them; what is no such setting is refused later."""
    if not isinstance(layers, Mapping) or not all(isinstance(own, Mapping) for own in layers.values()):
        return layers
    # Keys in JSON are strings.
    joined = {str(index): dict(own) for index, own in layers.items()}
    for index, most in active_experts.items():
        joined[str(index)] = joined.get(str(index), {}) | {"active_experts": most}
    return joined
