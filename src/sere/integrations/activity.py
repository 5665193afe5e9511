"""What happened while re-routing was on, and one sentence for the case that nothing did."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from sere.config import LayerSettings, RerouteConfig
from sere.config.active_experts import text_of_active_experts
from sere.identity import span
from sere.reroute import COUNTERS
from sere.reroute.limits import active_by_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What an engine saw since re-routing was turned on or its statistics were reset.

    Attributes:
        calls: Calls of the model: forward passes in Transformers, steps of the model runner in vLLM.
        eligible: Of them, calls that the phase allows to re-route; decode steps unless ``phases="all"``.
        exact: Runs of the layers in such calls that surely changed nothing: they had so few rows that all
            experts fit into M. The numbers below leave them out.
        exact_rows: The most rows of such a run.
        layer_steps: Steps that reached a layer with at least one primary expert; the most of any layer.
        rerouted: Slots whose expert changed, over all layers.
        critical: Experts that resembled no primary one and stayed; sum over steps and layers.
        experts_before: Distinct experts that the routers chose, mean per step and layer.
        experts_after: Distinct experts that ran, mean per step and layer.
        rows: Rows that were not padding, mean per step and layer.
        hook_ran: Whether a layer's hook ran in an eligible call; None where only ``layer_steps`` tells.
        compiled: Whether compiled calls ran, which ``calls`` and ``eligible`` leave out.
        own_budgets: Whether rows were given budgets of their own, which may protect all of them.
        mixed: Whether rows that keep their experts, such as those of prompts, may be among ``rows``.
    """

    calls: int
    eligible: int
    layer_steps: int
    rerouted: int
    critical: int
    experts_before: float
    experts_after: float
    rows: float
    exact: int = 0
    exact_rows: int = 0
    hook_ran: bool | None = None
    compiled: bool = False
    own_budgets: bool = False
    mixed: bool = False

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
            rows=total["rows"] / steps,
            **seen,
        )


def without_numbers(sentence: str) -> str:
    """Return a reason without its numbers: with others it is the same reason, and no news."""
    return re.sub(r"\d+(\.\d+)?", "#", sentence)


def why_nothing_changed(
    activity: Activity,
    config: RerouteConfig | None,
    *,
    top_k: int,
    num_experts: int,
    layers: Collection[int] = (),
) -> str | None:
    """Return one sentence that says why no slot was re-routed, or None if one was.

    Args:
        activity: What the engine saw.
        config: SERE's settings, or None for another policy.
        top_k: K, routed slots per token; the largest of any layer.
        num_experts: E, experts of a layer; the largest of any layer.
        layers: Decoder-layer indices of the layers, where the caller knows them.
    """
    if activity.rerouted or (activity.layer_steps and activity.experts_after < activity.experts_before):
        return None
    if activity.layer_steps:
        read = f"{activity.experts_before:.1f}"
        why = _nothing_rerouted(activity, config, top_k, num_experts, layers, read)
    elif activity.exact and activity.hook_ran is not False:
        rows, most = activity.exact_rows, min(num_experts, activity.exact_rows * top_k)
        seen = replace(activity, rows=float(rows), experts_before=float(most))
        why = _nothing_rerouted(seen, config, top_k, num_experts, layers, f"up to {most}")
    else:
        why = _nothing_reached_a_layer(activity, config)
    return f"nothing was re-routed: {why}"


def why_all_kept(config: RerouteConfig, top_k: int) -> str | None:
    """Return one sentence that says that S keeps all slots of every layer, or None if it does not.

    Args:
        config: SERE's settings.
        top_k: K; the largest of any layer.
    """
    why = _all_kept([config.for_layer(index) for index in (-1, *config.layers)], top_k)
    return None if why is None else f"nothing was re-routed: {why}"


def _all_kept(own: Sequence[LayerSettings], top_k: int) -> str | None:
    if min(one.select_top_k for one in own) < top_k:
        return None
    return (
        f"select_top_k={span(one.select_top_k for one in own)} keeps all {top_k} slots of a token; use a "
        f"select_top_k below {top_k}"
    )


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


def _nothing_rerouted(
    activity: Activity,
    config: RerouteConfig | None,
    top_k: int,
    num_experts: int,
    layers: Collection[int],
    read: str,
) -> str:
    """Say why; ``read`` says how many experts per layer the batches read."""
    before = activity.experts_before
    if config is None:
        return f"the policy changed no slot of batches that read {read} experts per layer"
    own = [config.for_layer(index) for index in layers or (-1, *config.layers)]
    least, named = _limit(activity, config, own, top_k, num_experts)
    if least >= num_experts:
        return (
            f"{named} is not below the {num_experts} experts of a layer, so every expert is primary; use a "
            "smaller active_experts"
        )
    if not activity.own_budgets and (kept := _all_kept(own, top_k)) is not None:
        return kept
    if least >= before:
        return (
            f"{named} is not below what these batches read ({read} experts per layer); use a smaller "
            "active_experts or larger batches"
        )
    if activity.critical:
        return _no_substitute(own)
    kept = "smaller row budgets" if activity.own_budgets else "a smaller select_top_k"
    return (
        f"all {read} experts per layer that these batches read are primary; larger batches, {kept} or "
        "a smaller active_experts leave something to re-route"
    )


def _no_substitute(own: Sequence[LayerSettings]) -> str:
    """Say why the experts that are not primary stayed."""
    least, most = (choose(one.threshold for one in own) for choose in (min, max))
    if most > 0:
        value = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        return (
            f"no expert had a similarity of threshold={value} or more to a primary one; use a smaller "
            "threshold"
        )
    return (
        "the table knows no similarity between the experts that these batches read; calibrate it on more text"
    )


def _limit(
    activity: Activity, config: RerouteConfig, own: Sequence[LayerSettings], top_k: int, num_experts: int
) -> tuple[int, str]:
    """Return the smallest M that held in any layer, and what to call what said so."""
    by_rows = [active_by_rows(one.active_experts, num_experts, top_k) for one in own]
    rows = min(max(1, math.ceil(activity.rows)), len(by_rows[0]))
    # How many rows may be re-routed is not known where others are among them.
    known = not (activity.own_budgets or activity.mixed)
    held = [most[rows - 1] if known else min(most[:rows]) for most in by_rows]
    settings = {one.active_experts for one in own}
    value = next(iter(settings))
    if len(settings) == 1 and isinstance(value, int):
        return min(held), f"active_experts={value}"
    where = f"{_count(rows, 'row')}" if known else f"1 to {_count(rows, 'row')}"
    lowest = span(held) if known else f"{min(held)} or more"
    which = "active_experts" if len(settings) > 1 else f"active_experts={text_of_active_experts(value)}"
    tier = "" if config.tier is None else f"of the tier {config.tier!r}, "
    layer = "by layer, " if len(settings) > 1 else ""
    return min(held), f"{which} ({tier}{layer}{lowest} for {where})"
