"""What the engine's log says at the start of re-routing, and of settings that leave nothing to re-route."""

from __future__ import annotations

import logging

from sere.identity import span
from sere.integrations.vllm.start import features
from sere.integrations.vllm.worker.rules import layer_settings
from sere.integrations.vllm.worker.state import WorkerState

# A child of vLLM's logger: its lines come out where and as the engine's own do, in every process.
logger = logging.getLogger("vllm.sere")

_LOGGED_ROWS = (1, 8, 32, 128)


def log_start(state: WorkerState) -> None:
    """Log that re-routing is active, and warn of what may surprise.

    Args:
        state: The worker's state, prepared.
    """
    logger.info("sere: %s", describe(state))
    for warning in features.surprises(state.vllm_config, state.config):
        logger.warning("sere: %s", warning)
    if state.sere.full_rows:
        logger.info(
            "sere: the expert kernel %s is not known to handle duplicate ids within one token's top-k: "
            "rows get different experts (merge='distinct'), and a layer reads at least as many as a token "
            "has slots, also where active_experts says fewer",
            state.kernel or "in use",
        )
    warn_of_settings(state)


def describe(state: WorkerState) -> str:
    """Return the line that says that re-routing is active."""
    if not state.layers:
        return "this pipeline stage has no MoE layers and re-routes nothing; the others may"
    indices, table, config = sorted(state.layers), state.table, state.config
    return (
        f"re-routing {'active' if state.enabled else 'ready, but off'}: {len(indices)} MoE layers "
        f"({indices[0]} to {indices[-1]}), table {table.identity.name!r} ({table.metric}, "
        f"{table.fingerprint[:12]}), {_how_many(state)}, factors {'on' if _has_factors(state) else 'off'}, "
        f"targets={config.targets} merge={config.merge}, expert kernel {state.kernel or 'unknown'}, backend "
        f"{', '.join(state.backends)}"
    )


def _how_many(state: WorkerState) -> str:
    """Return tier, S, ρ and M: one number, or its range over the layers, for steps of a few sizes."""
    config = state.config
    layers = [layer_settings(state.sere, shape) for shape in state.shapes]
    name = f"tier {config.tier}" if config.tier is not None else "no tier"
    S = span(layer["select_top_k"] for layer in layers)
    thresholds = sorted({layer["threshold"] for layer in layers})
    rho = " to ".join(f"{one:g}" for one in {thresholds[0]: None, thresholds[-1]: None})
    by_rows = {rows: span(dict(layer["active_experts"])[rows] for layer in layers) for rows in _LOGGED_ROWS}
    if len({*by_rows.values()}) == 1:
        most = by_rows[_LOGGED_ROWS[0]]
    else:
        most = f"{', '.join(by_rows.values())} at {', '.join(map(str, by_rows))} rows"
    return f"{name}, S={S}, rho={rho}, M={most}"


def _has_factors(state: WorkerState) -> bool:
    return state.config.use_scale is not False and any(
        state.table.layers[shape.index].scale is not None for shape in state.shapes
    )


def warn_of_settings(state: WorkerState) -> None:
    """Warn if the current settings leave nothing to re-route."""
    if state.count_only or not state.layers:
        return
    for reason in state.sere.why_idle([layer.shape for layer in state.layers.values()]):
        logger.warning("sere: %s", reason)
