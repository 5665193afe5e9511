"""What the engine's log says at the start of re-routing, and of settings that leave nothing to re-route."""

from __future__ import annotations

import logging

from sere.integrations.vllm.start import features
from sere.integrations.vllm.worker.rules import SHOWN_ROWS
from sere.integrations.vllm.worker.state import WorkerState
from sere.policies.how_many import how_many
from sere.policies.sere import SereRouter
from sere.reroute.backends.registry import why_not_fastest
from sere.table import GAINS_LEFT_OUT

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
    if state.sere.full_rows:
        logger.warning(
            "sere: the expert kernel %s is not known to handle duplicate ids within one token's top-k: "
            "rows get different experts (merge='distinct'), and a layer reads at least as many as a token "
            "has slots, also where active_experts says fewer; the kernels that need neither are in "
            "docs/vllm-compatibility.md (--moe-backend chooses one)",
            state.kernel or "in use",
        )
    _say_why_not_flattened(state)
    _say_which_steps_skip_slots(state)
    _say_that_gains_are_left_out(state)
    warn_of_backend(state)
    warn_of_settings(state)


def log_measured(state: WorkerState) -> None:
    """Log of which steps the tiers' least gains are left out, by what was measured during the warm-up.

    Args:
        state: The worker's state, after the warm-up.
    """
    if not state.flat.break_evens or not state.speaks:
        return
    rows = [str(rows) for rows in SHOWN_ROWS if state.flat.compute_all_slots(rows, largest_budget=0)]
    table = state.rules.table
    if rows and table.without_gains() is not table:
        logger.info(
            "sere: least gains of the table's tiers are left out of steps of %s rows: pairs are never faster "
            "there, so that all slots are computed",
            ", ".join(rows),
        )


def _say_why_not_flattened(state: WorkerState) -> None:
    """Log why all slots are computed on a CPU, unless the user said so."""
    on_cpu = state.budgets is not None and state.budgets.tensor.device.type == "cpu"
    if state.layers and on_cpu and state.flat.why_not is not None and state.flat.setting != "off":
        logger.info("sere: flatten: all slots are computed, because %s", state.flat.why_not)


def _say_that_gains_are_left_out(state: WorkerState) -> None:
    """Log that the tiers' least gains are not applied, because nothing would be faster."""
    if state.layers and state.rules.table is not state.table:
        logger.info("sere: %s", GAINS_LEFT_OUT)


def _say_which_steps_skip_slots(state: WorkerState) -> None:
    """Log from how many rows on slots that carry nothing are left out on a GPU."""
    found = [layer.skips_from for layer in state.layers.values() if layer.skips_from is not None]
    if found:
        logger.info(
            "sere: in steps of %d or more rows slots that carry nothing get the id -1, which the expert "
            "kernel %s skips; merge='none' computes them all",
            min(found),
            state.kernel,
        )


def describe(state: WorkerState) -> str:
    """Return the line that says that re-routing is active."""
    if not state.layers:
        return "this pipeline stage has no MoE layers and re-routes nothing; the others may"
    indices, table, config = sorted(state.layers), state.table, state.config
    return (
        f"re-routing {'active' if state.enabled else 'ready, but off'}: {len(indices)} MoE layers "
        f"({indices[0]} to {indices[-1]}), table {table.identity.name!r} ({table.metric}, "
        f"{table.fingerprint[:12]}), {how_many(state.sere, state.shapes)}, factors {_factors(state)}, "
        f"targets={config.targets} merge={config.merge}, expert kernel {state.kernel or 'unknown'}, backend "
        f"{', '.join(state.backends)}"
    )


def _factors(state: WorkerState) -> str:
    """Say whether weights of re-routed slots are scaled."""
    known = any(state.table.layers[shape.index].scale is not None for shape in state.shapes)
    return "on" if known and state.config.use_scale is not False else "off"


def warn_of_backend(state: WorkerState) -> None:
    """Warn, once for each shape of a layer, if tensor operations run where a compiled backend could."""
    if state.config.backend != "auto":
        return
    found = {
        (layer.shape.num_experts, layer.shape.top_k): (layer.shape.dtypes, layer.router.prepared)
        for layer in state.layers.values()
        if isinstance(layer.router, SereRouter)
    }
    for (E, K), (dtypes, prepared) in sorted(found.items(), key=lambda item: item[0]):
        reason = why_not_fastest(prepared.backend, prepared.device, E, K, dtypes)
        if reason is not None:
            logger.warning(
                "sere: layers with %d experts and %d slots per row are re-routed with the slow backend torch "
                "(about a hundred operations per layer and step): %s",
                E,
                K,
                reason,
            )


def warn_of_settings(state: WorkerState) -> None:
    """Warn if the current settings leave nothing to re-route."""
    if state.count_only or not state.layers:
        return
    for reason in state.sere.why_idle([layer.shape for layer in state.layers.values()]):
        logger.warning("sere: %s", reason)
