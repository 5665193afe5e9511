"""Cosine similarity: the mean cosine of two experts' outputs, token by token; and of two experts' weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sere.errors import InputError
from sere.similarity.accumulator import SLICE_ELEMENTS, Accumulator, as_layer, zeros
from sere.similarity.layer import LayerSimilarity


class Cosine(Accumulator):
    """Accumulates the Gram matrix of row-normalised outputs; gives ``(1 + mean cos) / 2``.

    The cosine with a zero row is 0.

    Source: METHOD.md section 3.
    """

    metric = "cosine"

    def __init__(self, E: int, **options: Any) -> None:
        super().__init__(E, **options)
        self._sums = {"cosine": zeros(E)}

    def _add(self, outputs: Tensor, *_routing: Tensor) -> None:
        for part in self._slices(outputs):
            rows = outputs[:, part].to(self._dtype, copy=True)
            normalise(rows)
            flat = rows.flatten(1)
            self._sum("cosine", flat @ flat.T)

    def _similarity(self, sums: dict[str, Tensor]) -> LayerSimilarity:
        return as_layer((1 + sums["cosine"] / self.tokens) / 2)


def normalise(rows: Tensor) -> None:
    """Divide the rows ``[..., H]`` by their norms, in place; zero rows stay zero.

    They are first divided by their largest value, so that no square over- or underflows.
    """
    for order in (float("inf"), 2.0):
        norm = torch.linalg.vector_norm(rows, ord=order, dim=-1, keepdim=True)
        rows /= norm.masked_fill_(norm == 0, 1)


@torch.no_grad()
def weights_similarity(weights: Sequence[Tensor] | Tensor) -> LayerSimilarity:
    """Return the cosine of the experts' concatenated weights: similarity without data.

    Args:
        weights: One flat tensor an expert, or ``[E, n]``; any floating dtype. Not modified.

    Returns:
        The layer's similarities. Negative cosines are 0; so is the cosine with an all-zero expert.

    Raises:
        InputError: There is no expert, or they differ in size, are not floating-point or not finite.

    Source: METHOD.md section 3, metric ``weights``.
    """
    flat = [expert.detach().reshape(-1) for expert in weights]
    if not flat or len({expert.numel() for expert in flat}) > 1 or flat[0].numel() == 0:
        sizes = sorted({expert.numel() for expert in flat})
        raise InputError(
            f"weights: expected one non-empty tensor an expert, all of one size, got sizes {sizes}"
        )
    if not all(expert.is_floating_point() for expert in flat):
        raise InputError("weights: expected floating-point tensors; dequantise the experts first")
    gram, step = zeros(len(flat)), max(1, SLICE_ELEMENTS // len(flat))
    for start in range(0, flat[0].numel(), step):
        block = torch.stack([expert[start : start + step].float() for expert in flat])
        gram += (block @ block.T).cpu().double()
    if not bool(torch.isfinite(gram).all()):
        bad = (~torch.isfinite(gram.diagonal())).nonzero().flatten().tolist()
        raise InputError(f"weights: expected finite values, got NaN or infinity from experts {bad[:8]}")
    norms = gram.diagonal().sqrt()
    norms = norms.masked_fill(norms == 0, 1)
    return as_layer(gram / norms[:, None] / norms[None, :])
