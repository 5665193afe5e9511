"""Apply changed settings in one worker, between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sere.config.change import CHANGEABLE as SETTINGS
from sere.config.change import changed
from sere.errors import ConfigError, SereError, did_you_mean
from sere.integrations.vllm.worker.start_log import warn_of_settings
from sere.integrations.vllm.worker.state import WorkerState

_SWITCHES = ("enabled", "count_only")
CHANGEABLE = (*SETTINGS, *_SWITCHES)


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
