"""The experts of which a table knows nothing: how many there are, where and why."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sere.similarity import METRICS, LayerSimilarity

# Layers that a sentence names; the others are counted.
_NAMED = 8
# Metrics of which files of format version 1 hold 0 where nothing is known.
_ZERO_MEANT_UNKNOWN = ("projection", "weights", "cka", "cka_linear", "cka_rbf", "cka_polynomial")


def say_unknown(layers: Mapping[int, LayerSimilarity], metric: str) -> str | None:
    """Say in one sentence how many experts have no known similarity to any other, or None if all have one.

    Args:
        layers: Similarities by decoder-layer index.
        metric: The metric's name, which tells why.
    """
    counts = {index: len(layer.unknown) for index, layer in layers.items() if layer.unknown}
    if not counts:
        return None
    named = [f"{count} of {layers[index].num_experts} in layer {index}" for index, count in counts.items()]
    if len(named) > _NAMED:
        named[_NAMED:] = [f"and in {len(named) - _NAMED} more layers"]
    why = METRICS[metric].unknown if metric in METRICS else ""
    return (
        f"{sum(counts.values()):,} of {sum(layer.num_experts for layer in layers.values()):,} experts have no known "
        f"similarity to any other, so they are never replaced ({', '.join(named)})"
        + (f": {why}" if why else "")
    )


def off_diagonal(similarity: Tensor) -> Tensor:
    """Return the known similarities of pairs of different experts, flat; none for a single expert.

    Args:
        similarity: ``[E, E]``.
    """
    others = similarity[~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)]
    return others[~others.isnan()]


def read_zeros_as_unknown(layer: LayerSimilarity, metric: str) -> LayerSimilarity:
    """Return a layer from a file of format version 1 with NaN where the metric's 0 meant "not known".

    These are the rows that are 0 off the diagonal; of a symmetric metric the columns, too.

    Args:
        layer: As it was stored.
        metric: The metric's name.
    """
    zero = layer.similarity.clone().fill_diagonal_(0) == 0
    lost = zero.all(dim=1)[:, None]
    if metric not in _ZERO_MEANT_UNKNOWN or layer.num_experts == 1 or not bool(lost.any()):
        return layer
    lost = lost | lost.T if METRICS[metric].symmetric else lost.expand_as(zero)
    similarity = layer.similarity.masked_fill(lost, torch.nan).fill_diagonal_(1)
    return LayerSimilarity(similarity, None if layer.scale is None else layer.scale.masked_fill(lost, 1))
