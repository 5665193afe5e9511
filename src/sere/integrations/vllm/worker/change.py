"""Apply changed settings in one worker, between two steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sere.errors import ConfigError, SereError, did_you_mean
from sere.integrations.vllm.worker.state import WorkerState
from sere.policies.sere import check_keep
from sere.reroute.types import prepare_neighbors

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
        _write_neighbors(state, config)
    state.config, state.enabled = config, enabled
    state.settings_changed()
    if enabled and state.speaks:
        state.warn_of_settings()


def _write_neighbors(state: WorkerState, config: Any) -> None:
    """Write lists cut at the new ρ over the old ones: graphs and compiled code read these."""
    prepared = [
        (layer.plan.neighbors, prepare_neighbors(
            state.table.layers[layer.index], threshold=config.threshold,
            keep=config.keep.get(layer.index, ()), device=layer.plan.neighbors.order.device,
        ))
        for layer in state.layers.values()
        if layer.plan is not None
    ]  # fmt: skip
    for old, new in prepared:
        old.count.copy_(new.count)
        old.position.copy_(new.position)
        old.lists.copy_(new.lists)
        old.keep.copy_(new.keep)
