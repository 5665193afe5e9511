"""Apply changed settings in one worker, between two steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sere.errors import ConfigError, SereError, did_you_mean
from sere.integrations.vllm.worker.start_log import warn_of_settings
from sere.integrations.vllm.worker.state import WorkerState

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
    state.change(config, enabled=enabled)
    if enabled and state.speaks:
        warn_of_settings(state)
