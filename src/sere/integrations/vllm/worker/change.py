"""Apply changed settings in one worker, between two steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sere.config import RerouteConfig
from sere.errors import ConfigError, SereError, did_you_mean
from sere.integrations.vllm.worker.state import WorkerState
from sere.policies.sere import check_keep
from sere.reroute import PreparedLayer, prepare_layer

CHANGEABLE = ("select_top_k", "threshold", "keep", "enabled")


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
    return state.config.to_mapping() | {"enabled": state.enabled}


def _apply(state: WorkerState, changes: Mapping[str, Any]) -> None:
    for key in changes:
        if key not in CHANGEABLE:
            raise ConfigError(
                f"{key!r} cannot be changed while the engine runs{did_you_mean(str(key), CHANGEABLE)}; "
                "restart it with the new setting"
            )
    enabled = changes.get("enabled", state.enabled)
    if not isinstance(enabled, bool):
        raise ConfigError(f"enabled: expected true or false, got {enabled!r}")
    config = dataclasses.replace(state.config, **{k: v for k, v in changes.items() if k != "enabled"})
    # All layers, not only this process's: ranks must agree on what is refused.
    check_keep(config.keep, state.table.layers)
    if {"threshold", "keep"} & set(changes):
        _update_layers(state, config)
    state.config, state.enabled = config, enabled
    state.settings_changed()
    if enabled and state.speaks:
        state.warn_of_settings()


def _update_layers(state: WorkerState, config: RerouteConfig) -> None:
    """Write lists cut at the new ρ over the old ones: graphs and compiled code read these."""
    layers = {layer.index: layer.prepared for layer in state.layers.values() if layer.prepared is not None}
    new = {index: _prepare_again(state, index, old, config) for index, old in layers.items()}
    for index, prepared in new.items():
        layers[index].update(prepared)


def _prepare_again(
    state: WorkerState, index: int, old: PreparedLayer, config: RerouteConfig
) -> PreparedLayer:
    layer = state.table.layers[index]
    return prepare_layer(
        layer,
        dataclasses.replace(old.config, threshold=config.threshold, keep=config.keep),
        keep=config.keep.get(index, ()),
        scale=layer.scale if old.config.use_scale else None,
        device=old.device,
    )
