"""Projection similarity: how much of an expert's output another explains, on the tokens routed to it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sere.similarity.accumulator import Accumulator, as_layer, zeros
from sere.similarity.layer import LayerSimilarity
from sere.similarity.metric import Metric


def definition(outputs: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much of each expert one scalar times another explains, and that scalar.

    On the tokens routed to e, weighted by their gate: ``1 - min_α Σ w ||Y_e - α Y_p||² / Σ w ||Y_e||²``.

    Args:
        outputs: ``Y``, ``[E, T, H]``.
        ids: The router's choice, ``[T, K]``; a slot with an id outside [0, E) or weight 0 does not count.
        weights: Gate weights, ``[T, K]``.

    Returns:
        Similarity and scale α, both ``[E, E]``, float64, row e and column p: p replaces e. Similarity is 0
        where α is negative. It is NaN, and scale 1, where ``Y_e`` or ``Y_p`` is zero on all of e's tokens, as
        on the none of an expert that no slot chose.
    """
    Y, w = outputs.double(), weights.double()
    E, T, _ = Y.shape
    similarity, scale = (
        torch.eye(E, dtype=torch.float64, device="cpu"),
        torch.ones(E, E, dtype=torch.float64, device="cpu"),
    )
    for e in range(E):
        slots = [(t, float(w[t, k])) for t in range(T) for k in range(ids.shape[1]) if ids[t, k] == e]
        energy = sum(weight * float(Y[e, t].square().sum()) for t, weight in slots)
        for p in set(range(E)) - {e}:
            common = sum(weight * float(Y[e, t] @ Y[p, t]) for t, weight in slots)
            other = sum(weight * float(Y[p, t].square().sum()) for t, weight in slots)
            if energy == 0 or other == 0:
                similarity[e, p] = math.nan
                continue
            alpha = scale[e, p] = common / other
            residual = sum(weight * float((Y[e, t] - alpha * Y[p, t]).square().sum()) for t, weight in slots)
            similarity[e, p] = 1 - residual / energy if alpha > 0 else 0
    return similarity, scale


class Projection(Accumulator):
    """Accumulates ``A_ep = Σ w ⟨Y_e, Y_p⟩`` and ``B_ep = Σ w |Y_p|²`` over the tokens routed to e.

    Gives the similarity ``A² / (B A_ee)``, which is ``1 - min_α Σ w |Y_e - α Y_p|² / Σ w |Y_e|²``, and 0
    where α is negative; ``α = A / B`` is kept as ``scale``. The result is directed: in row e, column p,
    p replaces e. An expert that was never routed, or gave no output on its tokens, has no known similarity:
    its row is NaN, its scale 1. So is an entry whose p gives no output on e's tokens: no α is the best. Slots
    with an id outside [0, E) or weight 0 do not count. The work of an update is ``t·K·E·H`` multiplications.

    Source: docs/method.md section 3.
    """

    metric = "projection"
    needs_routing = True

    def __init__(self, num_experts: int, **options: Any) -> None:
        super().__init__(num_experts, **options)
        self._sums = {"common": zeros(num_experts), "energy": zeros(num_experts)}

    def _add(self, outputs: Tensor, *routing: Tensor) -> None:
        ids, weights = routing
        ids, weights = ids.to(outputs.device, torch.int64), weights.to(outputs.device, self._dtype)
        weights = weights.masked_fill((ids < 0) | (ids >= self.num_experts), 0)
        ids = ids.clamp(0, self.num_experts - 1)
        for part in self._slices(outputs):
            self._add_slice(outputs[:, part].to(self._dtype), ids[part], weights[part])

    def _add_slice(self, Y: Tensor, ids: Tensor, weights: Tensor) -> None:
        by_token = Y.transpose(0, 1)
        tokens = torch.arange(len(ids), device=Y.device)
        chosen = by_token[tokens[:, None], ids]
        inner = chosen @ by_token.transpose(1, 2)  # [t, K, E]: the slot's expert with every expert
        norms = Y.square().sum(dim=2).T  # [t, E]
        for name, value in (("common", inner), ("energy", norms[:, None, :].expand_as(inner))):
            total = torch.zeros(self.num_experts, self.num_experts, dtype=self._dtype, device=Y.device)
            self._sum(name, total.index_add_(0, ids.flatten(), (weights[..., None] * value).flatten(0, 1)))

    def _similarity(self, sums: dict[str, Tensor]) -> LayerSimilarity:
        A, B = sums["common"], sums["energy"]
        own = A.diagonal()[:, None]
        # A factor that float32 cannot hold is as little use as none.
        known = (own > 0) & (B > 0) & torch.isfinite((A / B).float())
        similarity = torch.where(A > 0, A.square() / (B * own), 0.0).masked_fill(~known, torch.nan)
        return as_layer(similarity, torch.where(known, A / B, 1.0).fill_diagonal_(1))


METRIC = Metric(
    name="projection",
    summary="share of an expert's routed output that one scalar times another's explains",
    definition=definition,
    accumulator=Projection,
    symmetric=False,
    unknown="no calibration token was routed to them, or their output is 0 on all tokens that were; "
    "calibrate on more tokens",
)
