"""What happened while re-routing was on, and one sentence for the case that nothing did."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from sere.config import RerouteConfig
from sere.reroute import COUNTERS
from sere.reroute.limits import active_by_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What an engine saw since re-routing was turned on or its statistics were reset.

    Attributes:
        calls: Calls of the model: forward passes in Transformers, steps of the model runner in vLLM.
        eligible: Of them, calls that the phase allows to re-route; decode steps unless ``phases="all"``.
        layer_steps: Steps that reached a layer with at least one primary expert; the most of any layer.
        rerouted: Slots whose expert changed, over all layers.
        critical: Experts that resembled no primary one and stayed; sum over steps and layers.
        experts_before: Distinct experts that the routers chose, mean per step and layer.
        experts_after: Distinct experts that ran, mean per step and layer.
        hook_ran: Whether a layer's hook ran in an eligible call; None where only ``layer_steps`` tells.
        compiled: Whether compiled calls ran, which ``calls`` and ``eligible`` leave out.
        own_budgets: Whether rows were given budgets of their own, which may protect all of them.
    """

    calls: int
    eligible: int
    layer_steps: int
    rerouted: int
    critical: int
    experts_before: float
    experts_after: float
    hook_ran: bool | None = None
    compiled: bool = False
    own_budgets: bool = False

    @classmethod
    def of(cls, counters: Sequence[Sequence[int]], **seen: Any) -> Self:
        """Return what the counters of all layers say, with what the host saw.

        Args:
            counters: By layer, one number per name in ``sere.reroute.COUNTERS``.
            **seen: The other attributes.
        """
        layers = [dict(zip(COUNTERS, sums, strict=True)) for sums in counters]
        total = {name: sum(layer[name] for layer in layers) for name in COUNTERS}
        steps = max(1, total["steps"])
        return cls(
            layer_steps=max((layer["steps"] for layer in layers), default=0),
            rerouted=total["slots_rerouted"],
            critical=total["critical"],
            experts_before=total["distinct_before"] / steps,
            experts_after=total["distinct_after"] / steps,
            **seen,
        )


def without_numbers(sentence: str) -> str:
    """Return a reason without its numbers: with others it is the same reason, and no news."""
    return re.sub(r"\d+(\.\d+)?", "#", sentence)


def why_nothing_changed(
    activity: Activity, config: RerouteConfig | None, *, top_k: int, num_experts: int
) -> str | None:
    """Return one sentence that says why no slot was re-routed, or None if one was.

    Args:
        activity: What the engine saw.
        config: SERE's settings, or None for another policy.
        top_k: K, routed slots per token; the largest of any layer.
        num_experts: E, experts of a layer; the largest of any layer.
    """
    if activity.rerouted or (activity.layer_steps and activity.experts_after < activity.experts_before):
        return None
    if activity.layer_steps:
        why = _nothing_rerouted(activity, config, top_k, num_experts)
    else:
        why = _nothing_reached_a_layer(activity, config)
    return f"nothing was re-routed: {why}"


def _nothing_reached_a_layer(activity: Activity, config: RerouteConfig | None) -> str:
    if activity.eligible and activity.hook_ran:
        return (
            f"in {_count(activity.eligible, 'step')} every row counted as padding or finished (pad_token_id, "
            "attention mask, row budgets), the cache was empty, or all gate weights were NaN"
        )
    if activity.eligible:
        kind = "call" if config is not None and config.phases == "all" else "decode step"
        return (
            f"{_count(activity.eligible, kind)} ran, but no layer's hook was called; the model was compiled "
            "before re-routing was applied, or its experts were replaced or are computed by other code: "
            "apply before compiling, and again after replacing experts"
        )
    if not activity.calls and not activity.compiled:
        return "the model was not called while re-routing was on, or not through the object it was applied to"
    calls = "the compiled calls" if activity.compiled else _count(activity.calls, "call")
    return (
        f"no decode step was seen in {calls} of the model; prompts, log-likelihood scoring and calls without "
        "a cache are prefill, which is re-routed only with phases='all'"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _nothing_rerouted(activity: Activity, config: RerouteConfig | None, top_k: int, num_experts: int) -> str:
    before = activity.experts_before
    if config is None:
        return f"the policy changed no slot of batches that read {before:.1f} experts per layer"
    most = config.active_experts
    if isinstance(most, int) and most >= num_experts:
        return (
            f"active_experts={most} is not below the {num_experts} experts of a layer, so every expert is "
            "primary; use a smaller active_experts"
        )
    if config.select_top_k >= top_k:
        return (
            f"select_top_k={config.select_top_k} keeps all {top_k} slots of a token; use a select_top_k "
            f"below {top_k}"
        )
    if max(active_by_rows(most, num_experts, top_k)) >= before:
        return (
            f"active_experts={most} is never below what these batches read ({before:.1f} experts per layer); "
            "use a smaller active_experts or larger batches"
        )
    if activity.critical and config.threshold > 0:
        return (
            f"no expert had a similarity of threshold={config.threshold:g} or more to a primary one; use a "
            "smaller threshold"
        )
    if activity.critical:
        return (
            "the table knows no similarity between the experts that these batches read; calibrate it on more "
            "text"
        )
    kept = "a smaller select_top_k"
    if activity.own_budgets:
        kept = "smaller row budgets"
    return (
        f"all {before:.1f} experts per layer that these batches read are primary; larger batches or {kept} "
        "leave something to re-route"
    )
