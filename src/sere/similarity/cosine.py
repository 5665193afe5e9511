"""Cosine similarity: the mean cosine of two experts' outputs, token by token; and of two experts' weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sere.errors import InputError
from sere.similarity.accumulator import (
    SLICE_ELEMENTS,
    Accumulator,
    as_layer,
    blocks,
    cached_elements,
    gram,
    zeros,
)
from sere.similarity.layer import LayerSimilarity


class Cosine(Accumulator):
    """Accumulates the Gram matrix of row-normalized outputs; gives ``(1 + mean cos) / 2``.

    The cosine with a zero row is 0; of an expert whose rows are all zero, no similarity is known (NaN).

    Source: docs/method.md section 3.
    """

    metric = "cosine"

    def __init__(self, E: int, **options: Any) -> None:
        super().__init__(E, **options)
        self._sums = {"cosine": zeros(E)}

    def _add(self, outputs: Tensor, *_routing: Tensor) -> None:
        for part in self._slices(outputs):
            self._sum("cosine", self._cosines(outputs[:, part]))

    def _cosines(self, outputs: Tensor) -> Tensor:
        """Return the sum over the tokens of ``outputs [E, t, H]`` of all cosines, ``[E, E]``, float64."""
        E, t, H = outputs.shape
        total = zeros(E)
        for part in blocks(t, E * H, cached_elements(outputs.device)):
            flat = directions(outputs[:, part].to(self._dtype)).flatten(1)
            total += gram(flat).cpu().double()
        return total

    def _similarity(self, sums: dict[str, Tensor]) -> LayerSimilarity:
        # The diagonal counts the rows that are not zero.
        silent = sums["cosine"].diagonal() == 0
        similarity = (1 + sums["cosine"] / self.tokens) / 2
        return as_layer(similarity.masked_fill(silent[:, None] | silent, torch.nan))


def directions(rows: Tensor) -> Tensor:
    """Return the rows ``[..., H]`` divided by their norms; zero rows stay zero. ``rows`` is not modified.

    Rows whose squares may over- or underflow are first divided by their largest value.
    """
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    limits = torch.finfo(rows.dtype)
    # Squares that underflow stay below the rounding of the square of this norm, thousands of them too.
    least = limits.tiny**0.5 / limits.eps
    if bool(((norm > least) & (norm < limits.max)).all()):
        return torch.div(rows, norm)
    largest = torch.linalg.vector_norm(rows, ord=float("inf"), dim=-1, keepdim=True)
    rows = rows / largest.masked_fill(largest == 0, 1)
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.div(rows, norm.masked_fill(norm == 0, 1))


@torch.no_grad()
def weights_similarity(weights: Sequence[Tensor] | Tensor) -> LayerSimilarity:
    """Return the cosine of the experts' concatenated weights: similarity without data.

    Args:
        weights: One flat tensor an expert, or ``[E, n]``; any floating dtype. Not modified.

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
            f"weights: expected one non-empty tensor an expert, all of one size, got sizes {sizes}"
        )
    if not all(expert.is_floating_point() for expert in flat):
        raise InputError("weights: expected floating-point tensors; dequantize the experts first")
    products, step = zeros(len(flat)), max(1, SLICE_ELEMENTS // len(flat))
    for start in range(0, flat[0].numel(), step):
        block = torch.stack([expert[start : start + step].float() for expert in flat])
        products += gram(block).cpu().double()
    if not bool(torch.isfinite(products).all()):
        bad = (~torch.isfinite(products.diagonal())).nonzero().flatten().tolist()
        raise InputError(f"weights: expected finite values, got NaN or infinity from experts {bad[:8]}")
    norms = products.diagonal().sqrt()
    norms = norms.masked_fill(norms == 0, torch.nan)
    return as_layer(products / norms[:, None] / norms[None, :])
