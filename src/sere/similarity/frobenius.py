"""Frobenius similarity: how far apart two experts' outputs are, relative to the layer's farthest pair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sere.similarity.accumulator import Accumulator, as_layer, blocks, cached_elements, gram, zeros
from sere.similarity.layer import LayerSimilarity
from sere.similarity.metric import Metric

# A similarity may be off by this much because of cancellation in the Gram form; pairs for which it could be
# more are computed again. Rounding of a Gram entry is taken as twice the dtype's epsilon.
CANCELLATION = 5e-6


def definition(outputs: Tensor) -> Tensor:
    """Return ``1 - D_ij / max(D)`` with ``D_ij = ||Y_i - Y_j||_F`` over all tokens.

    Args:
        outputs: ``Y``, ``[E, T, H]``.

    Returns:
        ``[E, E]``, float64; all ones where all experts are equal.
    """
    Y = outputs.double()
    E = Y.shape[0]
    distance = torch.zeros(E, E, dtype=torch.float64, device="cpu")
    for i in range(E):
        for j in range(E):
            distance[i, j] = (Y[i] - Y[j]).square().sum().sqrt()
    farthest = float(distance.max())
    return 1 - distance / farthest if farthest > 0 else torch.ones_like(distance)


class Frobenius(Accumulator):
    """Accumulates ``D²_ij = Σ_t ||Y_i - Y_j||²``; gives ``1 - D_ij / max(D)``.

    Source: docs/method.md section 3; SERE (arXiv 2602.07616).
    """

    metric = "frobenius"

    def __init__(self, num_experts: int, **options: Any) -> None:
        super().__init__(num_experts, **options)
        self._sums = {"squared_distance": zeros(num_experts)}

    def _add(self, outputs: Tensor, *_routing: Tensor) -> None:
        for part in self._slices(outputs):
            rows = outputs[:, part].flatten(1)
            self._sum("squared_distance", squared_distances(rows, self._dtype))

    def _similarity(self, sums: dict[str, Tensor]) -> LayerSimilarity:
        distance = sums["squared_distance"].sqrt()
        farthest = distance.max()
        return as_layer(1 - distance / farthest if farthest > 0 else torch.ones_like(distance))


METRIC = Metric(
    name="frobenius",
    summary="distance of outputs, relative to the farthest pair",
    definition=definition,
    accumulator=Frobenius,
)


def squared_distances(rows: Tensor, dtype: torch.dtype, *, split: bool = True) -> Tensor:
    """Return the squared distances of all pairs of rows, accurate for near-identical rows too.

    The Gram form ``G_ii + G_jj - 2 G_ij`` loses what the rows have in common. Subtracting the mean row, which
    changes no distance, removes most of that; rows that are close to each other and far from the mean are
    computed again among themselves.

    Args:
        rows: ``[E, n]``, floating point. Not modified.
        dtype: Of the products: float32 or float64.
        split: Whether close rows may be taken as groups with a mean of their own, rather than by pairs.

    Returns:
        ``[E, E]``, float64, on the CPU; at least 0, symmetric, diagonal 0.
    """
    products = _centered_gram(rows, dtype)
    norms = products.diagonal()
    squared = (norms[:, None] + norms[None, :] - products - products.T).clamp_(min=0).fill_diagonal_(0)
    close = _canceled(squared, norms, 2 * torch.finfo(dtype).eps)
    for group in _groups(close):
        if split and len(group) < len(rows):
            at = torch.tensor(group, device=squared.device)
            squared[at[:, None], at] = squared_distances(rows[at.to(rows.device)], dtype, split=False)
        else:
            _replace_pairs(squared, rows.to(dtype), group, close)
    return squared


def _centered_gram(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the inner products of the rows less their mean row, ``[E, E]``, float64, on the CPU."""
    E, n = rows.shape
    total = torch.zeros(E, E, dtype=torch.float64, device="cpu" if rows.device.type == "mps" else rows.device)
    for part in blocks(n, E, cached_elements(rows.device)):
        block = rows[:, part].to(dtype)
        centered = block - block.mean(dim=0)
        total += gram(centered).to(total.device, torch.float64)
    return total.cpu()


def _canceled(squared: Tensor, norms: Tensor, rounding: float) -> Tensor:
    """Mark pairs whose distance rounding may have moved too far, relative to the farthest; ``[E, E]``."""
    error = rounding * (norms[:, None] + norms[None, :])
    # d(D) = d(D²) / 2D; for D below the rounding itself, the error is at most its root.
    distance = torch.maximum(squared, error).sqrt()
    close = error > CANCELLATION * 2 * distance * squared.max().sqrt()
    return close.fill_diagonal_(False)


def _groups(close: Tensor) -> list[list[int]]:
    """Return the connected groups, of at least two, of a symmetric relation ``[E, E]``."""
    neighbors = [row.nonzero().flatten().tolist() for row in close]
    groups, seen = [], set[int]()
    for start in range(len(neighbors)):
        if start in seen or not neighbors[start]:
            continue
        group, todo = {start}, [start]
        while todo:
            fresh = set(neighbors[todo.pop()]) - group
            group |= fresh
            todo.extend(fresh)
        seen |= group
        groups.append(sorted(group))
    return groups


def _replace_pairs(squared: Tensor, rows: Tensor, group: list[int], close: Tensor) -> None:
    for i in group:
        for j in (j for j in group if j > i and bool(close[i, j])):
            squared[i, j] = squared[j, i] = float((rows[i] - rows[j]).square().sum())
