"""One sentence that says why an engine re-routed nothing, from what its workers counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sere.config import RerouteConfig
from sere.integrations.activity import Activity, why_all_kept, why_nothing_changed
from sere.integrations.vllm.step_counts import SKIPPED
from sere.reroute.stats import COUNTERS

_STEPS, _REROUTED = COUNTERS.index("steps"), COUNTERS.index("slots_rerouted")


def rerouted_slots(counted: Mapping[str, Any]) -> int:
    """Return how many slots were re-routed, over all layers; ``counted`` as below."""
    return sum(layer["counters"][_REROUTED] for layer in counted["layers"])


def why_engine_changed_nothing(counted: Mapping[str, Any]) -> str | None:
    """Return one sentence that says why nothing was re-routed, or None if that is no surprise.

    It is no surprise in an engine that is switched off, that has run no step, or that only counts, and of
    course in one that re-routed.

    Args:
        counted: What ``engine_stats.join_answers`` returns: the settings, the host's counts and the layers'
            counters.
    """
    steps, layers = counted["steps"], counted["layers"]
    config = _config(counted)
    seen = sum(steps[name] for name in ("rerouted", *SKIPPED) if name != "disabled")
    if not counted["enabled"] or counted["count_only"] or not seen or not layers:
        return None
    if not steps["rerouted"]:
        # A pipeline stage counts its own steps: layers of another one may have re-routed.
        return None if rerouted_slots(counted) else _no_row(counted, config)
    # One worker's layers are all of its own stage.
    idle = [
        layer["name"]
        for layer in layers
        if layer.get("rerouted", steps["rerouted"]) and not layer["counters"][_STEPS]
    ]
    if idle:
        return _idle_layers(steps["rerouted"], idle, len(layers))
    # A request may have brought a smaller or larger S of its own.
    if config is not None:
        config = dataclasses.replace(config, select_top_k=steps["least_budget"] or config.select_top_k)
    counters = [layer["counters"] for layer in layers]
    return _explain(counted, config, _activity(counters, seen, steps["rerouted"]))


def _activity(counters: Sequence[Sequence[int]], seen: int, rerouted: int) -> Activity:
    """Return what the layers counted; rows of prompts, which keep their experts, are among theirs."""
    return Activity.of(counters, calls=seen, eligible=rerouted, mixed=True)


def _no_row(counted: Mapping[str, Any], config: RerouteConfig | None) -> str | None:
    """Say why no step had a row to re-route."""
    steps = counted["steps"]
    if config is not None and any(steps[name] for name in ("protected", "mixed", "few_rows")):
        kept = why_all_kept(config, counted["top_k"])
        if kept is not None:
            return kept
    if steps["few_rows"]:
        few = Activity.of(
            (), calls=steps["few_rows"], eligible=steps["few_rows"], exact=steps["few_rows"],
            exact_rows=steps["exact_rows"],
        )  # fmt: skip
        return _explain(counted, config, few)
    if steps["mixed"]:
        return (
            f"nothing was re-routed: {steps['mixed']} steps with decoding requests also read so many tokens "
            "of prompts that nearly every expert was needed anyway; such steps are left alone"
        )
    if steps["protected"]:
        return (
            f"nothing was re-routed: in each of {steps['protected']} steps with decoding requests, all "
            'requests kept their own experts, because "off" or a large select_top_k is set for each of them '
            "or for the engine"
        )
    if steps["unknown"]:
        return (
            f"nothing was re-routed: in {steps['unknown']} steps the device dropped drafted tokens, so that "
            "it was not known which rows belong to which request (start without adaptive verification), or "
            "images were read by a model that has experts of their own for them"
        )
    return _explain(counted, config, Activity.of((), calls=steps["prompts"], eligible=0))


def _idle_layers(steps: int, idle: Sequence[str], layers: int) -> str:
    where = "" if len(idle) == layers else f" in {len(idle)} of {layers} layers"
    return (
        f"nothing was re-routed{where}: {steps} decode steps ran, but vLLM did not call the router of these "
        f"layers, or all gate weights are NaN (first layer: {idle[0]}); if the engine gives sensible text "
        "without re-routing, please report this with its settings"
    )


def _explain(counted: Mapping[str, Any], config: RerouteConfig | None, activity: Activity) -> str | None:
    return why_nothing_changed(activity, config, top_k=counted["top_k"], num_experts=counted["num_experts"])


def _config(counted: Mapping[str, Any]) -> RerouteConfig | None:
    """Return the settings that may be the reason; None for a rule of which no setting is known to be one."""
    settings = counted["settings"]
    if "policy" not in settings:
        return RerouteConfig.from_mapping(settings)
    S, K = settings.get("select_top_k", 0), counted["top_k"]
    return RerouteConfig(select_top_k=S) if S >= K else None
