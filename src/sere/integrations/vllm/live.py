"""Change settings while the engine serves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sere.errors import ConfigError, SereError, did_you_mean
from sere.integrations.vllm.calls import ask_workers
from sere.policies.sere import check_keep
from sere.reroute.types import prepare_neighbours

if TYPE_CHECKING:
    from sere.integrations.vllm.session import Session

CHANGE = "sere_configure"
"""Name of the worker's method, for ``collective_rpc``."""

CHANGEABLE = ("select_top_k", "threshold", "keep", "enabled")


def configure(llm: Any, **changes: Any) -> dict[str, Any]:
    """Change how a running engine re-routes, from its next step on.

    All workers change between the same two steps. Requests that are running go on; a value that is refused
    changes nothing.

    Args:
        llm: vLLM's ``LLM`` (or anything with its ``collective_rpc``).
        **changes: ``select_top_k``, ``threshold``, ``keep``, or ``enabled=False`` to switch off and
            ``enabled=True`` to switch on again. Other settings are part of compiled code and captured graphs
            and need a restart.

    Returns:
        The settings that hold now, with ``enabled`` among them.

    Raises:
        ConfigError: A setting cannot be changed here, or its value is refused.
        UnsupportedEngine: Re-routing is not active in this engine.
    """
    return agreed(ask_workers(llm, CHANGE, changes))


def agreed(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the workers agree on, or raise what they say is wrong.

    Raises:
        ConfigError: A worker refused the change.
    """
    for answer in answers:
        if "error" in answer:
            raise ConfigError(answer["error"])
    return dict(answers[0])


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
        _write_neighbours(session, config)
    session.config, session.enabled = config, enabled
    session.guard.restart()
    if enabled and session.speaks:
        session.warn_of_settings()


def _write_neighbours(session: Session, config: Any) -> None:
    """Write lists cut at the new ρ over the old ones, in place: graphs and compiled code read these."""
    prepared = [
        (layer.plan.neighbours, prepare_neighbours(
            session.table.layers[layer.index], threshold=config.threshold,
            keep=config.keep.get(layer.index, ()), device=layer.plan.neighbours.order.device,
        ))
        for layer in session.layers.values()
        if layer.plan is not None
    ]  # fmt: skip
    for old, new in prepared:
        old.count.copy_(new.count)
        old.position.copy_(new.position)
        old.lists.copy_(new.lists)
        old.keep.copy_(new.keep)
