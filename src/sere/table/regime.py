"""What to expect of re-routing from a table alone: how well experts replace each other, and what it loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.reroute.limits import active_by_rows
from sere.table.artifact import SimilarityTable
from sere.table.expected_loss import Expected, expected_error
from sere.table.layers import best_neighbors

BATCH_SIZES = (8, 16, 32, 64)
"""Rows of the steps for which the loss is estimated."""

# Share of an expert's output that the best other expert explains, in the mean: below the first, replacing is
# nearly the same as dropping; from the second on, most of the output stays.
_ORTHOGONAL, _ALIKE = 0.2, 0.5


@dataclass(frozen=True)
class Neighbors:
    """How well experts' best other experts replace them, over the experts of which that is known.

    Attributes:
        mean: Mean similarity to the best other expert.
        p10, p50, p90: Its quantiles.
    """

    mean: float
    p10: float
    p50: float
    p90: float


def neighbors(similarities: Sequence[Tensor]) -> Neighbors | None:
    """Return how similar experts are to their best other expert; None if no similarity is known.

    Args:
        similarities: ``[E, E]`` of one layer or of several.
    """
    best = torch.cat([best_neighbors(similarity).double().cpu() for similarity in similarities])
    known = best[~best.isnan()]
    if not len(known):
        return None
    parts = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device="cpu")
    return Neighbors(float(known.mean()), *known.quantile(parts).tolist())


def describe_regime(table: SimilarityTable) -> str:
    """Return one sentence on how well experts replace each other, and what follows for the settings."""
    found = neighbors([layer.similarity for layer in table.layers.values()])
    if found is None:
        return "no similarity is known, so nothing is re-routed"
    if not has_factors(table):
        return (
            f"the metric {table.metric!r} ranks experts and does not say how much of an output is lost; "
            "calibrate with projection to know"
        )
    if found.mean < _ORTHOGONAL:
        return "experts are close to orthogonal: factors mostly drop a slot, choose more experts"
    if found.mean < _ALIKE:
        return "experts resemble each other a little: replacing keeps some of a slot, the rest is lost"
    return "experts resemble each other: replacing keeps most of a slot, fewer experts may do"


def has_factors(table: SimilarityTable) -> bool:
    """Whether every layer has factors, so that ``1 - similarity`` is a share of energy."""
    return all(layer.scale is not None for layer in table.layers.values())


def why_no_loss(table: SimilarityTable) -> str | None:
    """Return why no loss can be estimated; None if it can."""
    if not has_factors(table):
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
        config: The settings; of them M, S, ρ and ``cap`` count.
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
            select_top_k=own.select_top_k, threshold=own.threshold, cap=settled.cap,
        )  # fmt: skip
        found[index] = {B: expected for (B, _), expected in cells.items()}
    return found


def mean_of(losses: Sequence[Expected]) -> Expected:
    """Return the means over layers."""
    return Expected(*map(fmean, zip(*losses, strict=True)))
