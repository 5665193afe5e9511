"""Tiers with what was measured or estimated of them, as the rows of a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sere.reroute.limits import active_by_rows
from sere.table.tiers import Tier

TIER_HEADS = ("tier", "B", "M", "experts", "loss", "95 %")
"""The columns of `tier_rows`: B is the batch size, M the experts that a layer reads."""

LOSSES = (
    "KL is the divergence from the unmodified model in nats per token, measured by sere tune on texts that "
    "the tier was not chosen by. An error is the expected share of the routed output's energy that is lost, "
    "estimated from the routing of calibration tokens; sere tune measures instead"
)
"""What the column of losses says."""


def tier_rows(tier: Tier, num_experts: int, top_k: int) -> Iterator[list[Any]]:
    """Yield a row for each batch size that a tier's evidence has; one for a tier without evidence.

    Args:
        tier: The tier.
        num_experts: E.
        top_k: K.
    """
    most = active_by_rows(tier.active_experts, num_experts, top_k)
    measured = tier.evidence.get("by_batch_size")
    if not isinstance(measured, Mapping) or not measured:
        yield [tier.name, f"1 to {len(most)}", f"{most[0]} to {most[-1]}", None, None, None]
        return
    name = tier.name
    for B, one in sorted(measured.items(), key=lambda item: int(item[0])):
        kl = one.get("kl") or {}
        experts = _pair(one.get("experts_before"), one.get("experts_after"), "{:.1f} > {:.1f}")
        bounds = _pair(kl.get("low"), kl.get("high"), "{:.4f} to {:.4f}")
        yield [
            name,
            B,
            _by_layer(most[min(int(B), len(most)) - 1], one.get("by_layer")),
            experts,
            _loss(one, kl),
            bounds,
        ]
        name = ""


def _loss(one: Mapping[str, Any], kl: Mapping[str, Any]) -> str | None:
    """Return what was measured or, without that, what was estimated."""
    if kl.get("value") is not None:
        return f"KL {kl['value']:.4f}"
    return None if one.get("error") is None else f"error {100 * one['error']:.1f} %"


def _by_layer(mean: int, by_layer: Sequence[int] | None) -> str:
    """Return M, with the least and the most of any layer where they differ."""
    return f"{mean} ({min(by_layer)} to {max(by_layer)})" if by_layer else str(mean)


def _pair(first: float | None, second: float | None, form: str) -> str | None:
    return None if first is None or second is None else form.format(first, second)
