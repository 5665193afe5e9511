"""Cosine similarity: the mean cosine of two experts' outputs, token by token."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from sere.similarity.accumulator import (
    Accumulator,
    as_layer,
    blocks,
    cached_elements,
    gram,
    zeros,
)
from sere.similarity.layer import LayerSimilarity
from sere.similarity.metric import Metric


def definition(outputs: Tensor) -> Tensor:
    """Return ``(1 + mean over tokens of cos(Y_i(t), Y_j(t))) / 2``; the cosine with a zero row is 0.

    NaN for an expert whose rows are all zero.

    Args:
        outputs: ``Y``, ``[E, T, H]``.

    Returns:
        ``[E, E]``, float64, diagonal 1.
    """
    Y = outputs.double()
    E, T, _ = Y.shape
    similarity = torch.ones(E, E, dtype=torch.float64, device="cpu")
    for i, j in combinations(range(E), 2):
        total = sum(cosine_of(Y[i, t], Y[j, t]) for t in range(T))
        known = bool(Y[i].any()) and bool(Y[j].any())
        similarity[i, j] = similarity[j, i] = (1 + total / T) / 2 if known else math.nan
    return similarity


def cosine_of(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two vectors; 0 if one is zero."""
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else 0.0


class Cosine(Accumulator):
    """Accumulates the Gram matrix of row-normalized outputs; gives ``(1 + mean cos) / 2``.

    The cosine with a zero row is 0; an expert whose rows are all zero has no known similarity (NaN).

    Source: docs/method.md section 3.
    """

    metric = "cosine"

    def __init__(self, num_experts: int, **options: Any) -> None:
        super().__init__(num_experts, **options)
        self._sums = {"cosine": zeros(num_experts)}

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


METRIC = Metric(
    name="cosine",
    summary="mean cosine of outputs, token by token",
    definition=definition,
    accumulator=Cosine,
    unknown="their output is 0 on every token",
)


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
