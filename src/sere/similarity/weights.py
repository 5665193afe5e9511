"""The cosine of two experts' weights: similarity without data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from sere.errors import InputError, name_some
from sere.similarity.accumulator import SLICE_ELEMENTS, as_layer, gram, zeros
from sere.similarity.cosine import cosine_of
from sere.similarity.layer import LayerSimilarity
from sere.similarity.metric import Metric


def definition(experts: Tensor) -> Tensor:
    """Return the cosine of the experts' concatenated weights; negative ones are 0, those with a zero NaN.

    Args:
        experts: ``[E, n]``.

    Returns:
        ``[E, E]``, float64, diagonal 1.
    """
    flat = experts.double()
    similarity = torch.eye(flat.shape[0], dtype=torch.float64, device="cpu")
    for i, j in combinations(range(flat.shape[0]), 2):
        known = bool(flat[i].any()) and bool(flat[j].any())
        similarity[i, j] = similarity[j, i] = max(0.0, cosine_of(flat[i], flat[j])) if known else math.nan
    return similarity


@torch.no_grad()
def weights_similarity(weights: Sequence[Tensor] | Tensor) -> LayerSimilarity:
    """Return the cosine of the experts' concatenated weights: similarity without data.

    Args:
        weights: One flat tensor per expert, or ``[E, n]``; any floating dtype. Not modified.

    Returns:
        The layer's similarities. Negative cosines are 0; those with an all-zero expert are NaN: not known.

    Raises:
        InputError: There is no expert, or they differ in size, are not floating-point or not finite.

    Source: docs/method.md section 3, metric ``weights``.
    """
    flat = [expert.detach().reshape(-1) for expert in weights]
    if not flat or len({expert.numel() for expert in flat}) > 1 or flat[0].numel() == 0:
        sizes = sorted({expert.numel() for expert in flat})
        raise InputError(
            f"weights: expected one non-empty tensor per expert, all of one size, "
            f"got sizes [{name_some(sizes)}]"
        )
    if not all(expert.is_floating_point() for expert in flat):
        raise InputError("weights: expected floating-point tensors; dequantize the experts first")
    products, step = zeros(len(flat)), max(1, SLICE_ELEMENTS // len(flat))
    for start in range(0, flat[0].numel(), step):
        block = torch.stack([expert[start : start + step].float() for expert in flat])
        products += gram(block).cpu().double()
    if not bool(torch.isfinite(products).all()):
        bad = (~torch.isfinite(products.diagonal())).nonzero().flatten().tolist()
        raise InputError(
            f"weights: expected finite values, got NaN or infinity from experts [{name_some(bad)}]"
        )
    norms = products.diagonal().sqrt()
    norms = norms.masked_fill(norms == 0, torch.nan)
    return as_layer(products / norms[:, None] / norms[None, :])


METRIC = Metric(
    name="weights",
    summary="cosine of the experts' weights; needs no data",
    definition=definition,
    of_weights=weights_similarity,
    unknown="their weights are all 0",
)
