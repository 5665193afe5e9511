"""Each expert's neighbors, sorted by similarity and cut at the threshold: what fast backends prepare from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Sorts behind every similarity, which are at least 0 but for rounding.
_UNKNOWN = -1.0


class RankedNeighbors(NamedTuple):
    """The neighbors of a layer's experts, on the host.

    Attributes:
        order: ``[E, E]``, int64; row e lists the other experts, most similar first (ties: lower id), e last.
        counts: ``[E]``, int64; how many of ``order[e]`` have a similarity of at least the threshold.
    """

    order: Tensor
    counts: Tensor


def rank_neighbors(similarity: Tensor, threshold: float) -> RankedNeighbors:
    """Sort each expert's neighbors by similarity and count those that reach the threshold.

    Args:
        similarity: ``[E, E]``, float32; one that is not known, NaN, is below every threshold.
        threshold: ρ; compared in float32, like the similarities.

    Source: docs/method.md section 4, step 4.
    """
    known = similarity.detach().to("cpu", torch.float32).nan_to_num(nan=_UNKNOWN)
    known.fill_diagonal_(-math.inf)
    descending, order = torch.sort(known, dim=1, descending=True, stable=True)
    enough = descending >= torch.tensor(threshold, dtype=torch.float32, device="cpu")
    # However low the threshold is, neither the expert itself nor an unknown similarity counts.
    return RankedNeighbors(order, (enough & (descending > _UNKNOWN)).sum(dim=1))
