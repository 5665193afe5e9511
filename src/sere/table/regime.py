"""What to expect of re-routing from a table alone: what settings lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from sere.config import RerouteConfig
from sere.reroute.limits import active_by_rows
from sere.table.artifact import SimilarityTable
from sere.table.expected_loss import Expected, expected_error
from sere.table.neighbors import has_factors

BATCH_SIZES = (8, 16, 32, 64)
"""Rows of the steps for which the loss is estimated."""


def why_no_loss(table: SimilarityTable) -> str | None:
    """Return why no loss can be estimated; None if it can."""
    if not has_factors(table.layers):
        return f"the metric {table.metric!r} has no factors; calibrate with projection"
    if table.routing is None:
        return "the table has no routing sample, as older ones and those of looping models; calibrate again"
    return None


def expected_losses(
    table: SimilarityTable, config: RerouteConfig, batch_sizes: Sequence[int] = BATCH_SIZES
) -> Mapping[int, Mapping[int, Expected]]:
    """Estimate what settings lose in each layer of a table for which `why_no_loss` has no reason.

    Args:
        table: The table; its tiers are what ``config`` may name.
        config: The settings; of them M, S, ρ, τ and ``cap`` count.
        batch_sizes: B.

    Returns:
        By decoder-layer index and B.

    Raises:
        ConfigError: The settings name a tier that the table lacks.

    Source: docs/method.md section 4, "Expected loss".
    """
    assert table.routing is not None  # what `why_no_loss` says
    settled = table.settings(config)
    found: dict[int, dict[int, Expected]] = {}
    for index in table.routing.ids:
        own, layer = settled.for_layer(index), table.layers[index]
        most = active_by_rows(own.active_experts, layer.num_experts, table.identity.slots[index])
        grid = {B: [most[min(B, len(most)) - 1]] for B in batch_sizes}
        cells = expected_error(
            table.routing, layer, index, grid, batch_sizes,
            select_top_k=own.select_top_k, threshold=own.threshold, min_gain=own.min_gain, cap=settled.cap,
        )  # fmt: skip
        found[index] = {B: expected for (B, _), expected in cells.items()}
    return found


def mean_of(losses: Sequence[Expected]) -> Expected:
    """Return the means over layers."""
    return Expected(*map(fmean, zip(*losses, strict=True)))
