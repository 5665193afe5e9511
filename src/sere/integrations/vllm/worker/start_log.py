"""What the engine's log says at the start of re-routing, and of settings that leave nothing to re-route."""

from __future__ import annotations

import logging

from sere.integrations.vllm.start import features
from sere.integrations.vllm.tiers import COUNT_ONLY_S
from sere.integrations.vllm.worker.state import WorkerState

# A child of vLLM's logger: its lines come out where and as the engine's own do, in every process.
logger = logging.getLogger("vllm.sere")


def log_start(state: WorkerState) -> None:
    """Log that re-routing is active, and warn of what may surprise.

    Args:
        state: The worker's state, prepared.
    """
    logger.info("sere: %s", describe(state))
    for warning in features.surprises(state.vllm_config, state.config):
        logger.warning("sere: %s", warning)
    warn_of_settings(state)


def describe(state: WorkerState) -> str:
    """Return the line that says that re-routing is active."""
    if not state.layers:
        return "this pipeline stage has no MoE layers and re-routes nothing; the others may"
    indices, table, config = sorted(state.layers), state.table, state.config
    return (
        f"re-routing {'active' if state.enabled else 'ready, but off'}: {len(indices)} MoE layers "
        f"({indices[0]} to {indices[-1]}), table {table.identity.name!r} ({table.metric}, "
        f"{table.fingerprint[:12]}), select_top_k={config.select_top_k} threshold={config.threshold:g} "
        f"active_experts={config.active_experts} targets={config.targets} merge={config.merge}, expert kernel "
        f"{state.kernel or 'unknown'}, backend {', '.join(state.backends)}"
    )


def warn_of_settings(state: WorkerState) -> None:
    """Warn if the current settings leave nothing to re-route."""
    if state.config.select_top_k == COUNT_ONLY_S or not state.layers:
        return
    for reason in state.sere.why_idle([layer.shape for layer in state.layers.values()]):
        logger.warning("sere: %s", reason)
