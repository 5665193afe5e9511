"""Apply changed settings in one worker, between two steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sere.config import RerouteConfig
from sere.errors import ConfigError, SereError, did_you_mean
from sere.integrations.vllm.worker.state import Session
from sere.policies.sere import check_keep
from sere.reroute import PreparedLayer, prepare_layer

CHANGEABLE = ("select_top_k", "threshold", "keep", "enabled")


def change(session: Session, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply changes in one worker, all or none.

    Errors are returned, not raised: they are the caller's, not the engine's.

    Args:
        session: The worker's session.
        changes: As for `configure`.

    Returns:
        The settings that hold now, or ``{"error": text}``.
    """
    try:
        _apply(session, changes)
    except SereError as error:
        return {"error": str(error)}
    return session.config.to_mapping() | {"enabled": session.enabled}


def _apply(session: Session, changes: Mapping[str, Any]) -> None:
    for key in changes:
        if key not in CHANGEABLE:
            raise ConfigError(
                f"{key!r} cannot be changed while the engine runs{did_you_mean(str(key), CHANGEABLE)}; "
                "restart it with the new setting"
            )
    enabled = changes.get("enabled", session.enabled)
    if not isinstance(enabled, bool):
        raise ConfigError(f"enabled: expected true or false, got {enabled!r}")
    config = dataclasses.replace(session.config, **{k: v for k, v in changes.items() if k != "enabled"})
    # All layers, not only this process's: ranks must agree on what is refused.
    check_keep(config.keep, session.table.layers)
    if {"threshold", "keep"} & set(changes):
        _update_layers(session, config)
    session.config, session.enabled = config, enabled
    session.guard.restart()
    if enabled and session.speaks:
        session.warn_of_settings()


def _update_layers(session: Session, config: RerouteConfig) -> None:
    """Write lists cut at the new ρ over the old ones, in place: graphs and compiled code read these."""
    prepared = [
        (layer.prepared, _prepared_again(session, layer.index, layer.prepared, config))
        for layer in session.layers.values()
        if layer.prepared is not None
    ]
    for old, new in prepared:
        old.update(new)


def _prepared_again(session: Session, index: int, old: PreparedLayer, config: RerouteConfig) -> PreparedLayer:
    layer = session.table.layers[index]
    return prepare_layer(
        layer,
        dataclasses.replace(old.config, threshold=config.threshold, keep=config.keep),
        keep=config.keep.get(index, ()),
        scale=layer.scale if old.config.use_scale else None,
        device=old.device,
    )
