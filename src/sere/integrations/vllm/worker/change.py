"""Apply changed settings in one worker, between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sere.config.change import changed
from sere.errors import SereError
from sere.integrations.vllm.changes import SWITCHES, check_names
from sere.integrations.vllm.worker.start_log import warn_of_settings
from sere.integrations.vllm.worker.state import WorkerState


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
    return state.config.to_mapping() | {name: getattr(state, name) for name in SWITCHES}


def _apply(state: WorkerState, changes: Mapping[str, Any]) -> None:
    check_names(changes)
    switches = {name: changes.get(name, getattr(state, name)) for name in SWITCHES}
    values = {name: value for name, value in changes.items() if name not in SWITCHES}
    state.change(changed(state.given, values), **switches)
    if state.enabled and state.speaks:
        warn_of_settings(state)
