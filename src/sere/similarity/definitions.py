"""The metrics as docs/method.md section 3 defines them: plain loops over pairs, for reading and for tests.

Every function takes all outputs of all experts at once and computes in float64. The accumulators of this
package compute the same in matrix products and in pieces; the tests hold them to these definitions. A
similarity that a definition gives no value, 0/0, is NaN: not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

Kernel = Callable[[Tensor], Tensor]


def frobenius(outputs: Tensor) -> Tensor:
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


def cosine(outputs: Tensor) -> Tensor:
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
        total = sum(_cosine(Y[i, t], Y[j, t]) for t in range(T))
        known = bool(Y[i].any()) and bool(Y[j].any())
        similarity[i, j] = similarity[j, i] = (1 + total / T) / 2 if known else math.nan
    return similarity


def cka(outputs: Tensor, *, window: int, kernel: Kernel) -> Tensor:
    """Return the centered kernel alignment, its HSIC summed over windows of tokens, clamped to [0, 1].

    ``HSIC_ij = Σ_windows trace(C k(Y_i) C k(Y_j))``, ``C = I - 1/w``; the result is
    ``HSIC_ij / sqrt(HSIC_ii HSIC_jj)``, and NaN for an expert whose centered kernels vanish: its rows are the
    same within each window.

    Args:
        outputs: ``Y``, ``[E, T, H]``.
        window: Tokens of a window; the last one holds what is left.
        kernel: Gives the ``[w, w]`` kernel of one expert's window ``[w, H]``.

    Returns:
        ``[E, E]``, float64, diagonal 1.
    """
    Y = outputs.double()
    E, T, _ = Y.shape
    hsic = torch.zeros(E, E, dtype=torch.float64, device="cpu")
    for start in range(0, T, window):
        kernels = [_centered(Y[e, start : start + window], kernel) for e in range(E)]
        for i in range(E):
            for j in range(E):
                hsic[i, j] += torch.trace(kernels[i] @ kernels[j])
    similarity = torch.eye(E, dtype=torch.float64, device="cpu")
    for i, j in combinations(range(E), 2):
        norm = math.sqrt(float(hsic[i, i] * hsic[j, j]))
        similarity[i, j] = similarity[j, i] = float(hsic[i, j]) / norm if norm > 0 else math.nan
    return similarity.clamp(0, 1)


def linear_kernel(rows: Tensor) -> Tensor:
    """Return ``k(x, y) = ⟨x, y⟩`` of all pairs of rows, ``[w, w]``."""
    return rows @ rows.T


def rbf_kernel(rows: Tensor, *, bandwidth: float) -> Tensor:
    """Return ``exp(-|x - y|² / (2 bandwidth² m))``, ``[w, w]``.

    ``m`` is the window's mean squared distance over pairs of different tokens.
    """
    w = rows.shape[0]
    squared = torch.stack([(rows - row).square().sum(dim=1) for row in rows])
    mean = float(squared.sum()) / (w * (w - 1)) if w > 1 else 0.0
    return torch.exp(-squared / (2 * bandwidth**2 * mean)) if mean > 0 else torch.ones_like(squared)


def polynomial_kernel(rows: Tensor, *, degree: int, offset: float) -> Tensor:
    """Return ``(⟨x, y⟩ / s + offset)^degree``, ``[w, w]``; ``s`` is the window's mean squared norm."""
    mean = float(rows.square().sum()) / rows.shape[0]
    inner = rows @ rows.T / mean if mean > 0 else rows @ rows.T
    return (inner + offset) ** degree


def projection(outputs: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much of each expert one scalar times another explains, and that scalar.

    On the tokens routed to e, weighted by their gate: ``1 - min_α Σ w ||Y_e - α Y_p||² / Σ w ||Y_e||²``.

    Args:
        outputs: ``Y``, ``[E, T, H]``.
        ids: The router's choice, ``[T, K]``; a slot with an id outside [0, E) or weight 0 does not count.
        weights: Gate weights, ``[T, K]``.

    Returns:
        Similarity and scale α, both ``[E, E]``, float64, row e and column p: p in place of e. Similarity is 0
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


def weights(experts: Tensor) -> Tensor:
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
        similarity[i, j] = similarity[j, i] = max(0.0, _cosine(flat[i], flat[j])) if known else math.nan
    return similarity


def _cosine(a: Tensor, b: Tensor) -> float:
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else 0.0


def _centered(rows: Tensor, kernel: Kernel) -> Tensor:
    w = rows.shape[0]
    if bool((rows == rows[0]).all()):
        return rows.new_zeros(w, w)
    C = torch.eye(w, dtype=rows.dtype, device=rows.device) - 1 / w
    return C @ kernel(rows) @ C
