"""How well the experts of a table replace each other, in numbers and in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sere.similarity import LayerSimilarity
from sere.table.layers import best_neighbors

# Share of an expert's output that the best other expert explains, in the mean: below the first, replacing is
# nearly the same as dropping; from the second on, most of the output stays.
_ORTHOGONAL, _ALIKE = 0.1, 0.5


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


def describe_regime(layers: Mapping[int, LayerSimilarity], metric: str) -> str:
    """Return one sentence on how well experts replace each other, and what follows for the settings.

    Args:
        layers: Similarities by decoder-layer index.
        metric: The metric's name.
    """
    found = neighbors([layer.similarity for layer in layers.values()])
    if found is None:
        return "no similarity is known, so nothing is re-routed"
    if not has_factors(layers):
        return (
            f"the metric {metric!r} ranks experts and does not say how much of an output is lost; "
            "calibrate with projection to know"
        )
    if found.mean < _ORTHOGONAL:
        return "experts are close to orthogonal: factors mostly drop a slot, choose more experts"
    if found.mean < _ALIKE:
        return "experts resemble each other a little: replacing keeps some of a slot, the rest is lost"
    return "experts resemble each other: replacing keeps most of a slot, fewer experts may do"


def has_factors(layers: Mapping[int, LayerSimilarity]) -> bool:
    """Whether every layer has factors, so that ``1 - similarity`` is a share of energy."""
    return all(layer.scale is not None for layer in layers.values())
