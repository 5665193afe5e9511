"""What goes into a backend and what comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sere.errors import InputError
from sere.similarity.layer import LayerSimilarity

MERGE_MODES = ("none", "same", "distinct", "sentinel")

# Sorts behind every similarity, which are at least 0 but for rounding.
_UNKNOWN = -1.0


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that do not change from step to step, as plain numbers."""

    select_top_k: int
    min_active: int
    active_targets: bool
    merge: int
    sentinel: int


@dataclass(frozen=True, slots=True)
class Neighbors:
    """One layer's similarities, prepared once per threshold and device.

    Attributes:
        order: ``[E, E]``, int32; row e lists the other experts, most similar first (ties: lower id), e last.
        count: ``[E]``, int32; how many of ``order[e]`` have a similarity of at least the threshold.
        position: ``[E, E]``, int32; where p stands in ``order[e]``, or E beyond the cut.
        lists: ``[E / 8, E / 32, 32, 8]``, int16, both rounded up; ``order`` up to ``count``, then only the
            expert itself; eight experts side by side: 32 places of these are one read of a warp on a GPU.
        scale: ``[E, E]``, float32, or None.
        keep: ``[E]``, bool; experts that are never replaced.
    """

    order: Tensor
    count: Tensor
    position: Tensor
    lists: Tensor
    scale: Tensor | None
    keep: Tensor


def prepare_neighbors(
    layer: LayerSimilarity,
    *,
    threshold: float,
    keep: Sequence[int] = (),
    scale: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Neighbors:
    """Sort each expert's neighbors by similarity and cut the lists at the threshold.

    Args:
        layer: Similarities, ``[E, E]``; those that are not known, NaN, are below every threshold.
        threshold: ρ; compared in float32, like the similarities.
        keep: Experts of this layer that are never replaced.
        scale: ``[E, E]``, float32: factors for the weights of re-routed slots. Copied.
        device: Where the prepared tensors are to live.

    Raises:
        InputError: ``keep`` names something else than an expert in [0, E).

    Source: docs/method.md section 4, steps 3 and 4.
    """
    E = layer.num_experts
    similarity = layer.similarity.detach().to("cpu", torch.float32).nan_to_num(nan=_UNKNOWN)
    similarity.fill_diagonal_(-math.inf)
    sorted_similarity, order = torch.sort(similarity, dim=1, descending=True, stable=True)
    enough = sorted_similarity >= torch.tensor(threshold, dtype=torch.float32, device="cpu")
    # However low the threshold is, neither the expert itself nor one of which nothing is known is named.
    count = (enough & (sorted_similarity > _UNKNOWN)).sum(dim=1)
    ranks = torch.arange(E, device="cpu").expand(E, E)
    position = torch.empty_like(order).scatter_(1, order, ranks)
    position = torch.where(position < count[:, None], position, E)
    return Neighbors(
        order=order.to(device, torch.int32).contiguous(),
        count=count.to(device, torch.int32),
        position=position.to(device, torch.int32).contiguous(),
        lists=_side_by_side(order, count).to(device),
        # A copy, so that no caller changes a plan from outside.
        scale=None if scale is None else _copy(scale, device),
        keep=_keep_mask(keep, E).to(device),
    )


def _side_by_side(order: Tensor, count: Tensor) -> Tensor:
    E = order.shape[0]
    groups, pieces = -(-E // 8), -(-E // 32)
    # Experts that only fill the last group up repeat the last one.
    itself = torch.arange(8 * groups, device="cpu").clamp(max=E - 1)[:, None]
    lists = itself.repeat(1, 32 * pieces)
    lists[:E, :E] = torch.where(torch.arange(E, device="cpu") < count[:, None], order, itself[:E])
    return lists.reshape(groups, 8, pieces, 32).permute(0, 2, 3, 1).to(torch.int16).contiguous()


def _keep_mask(keep: Sequence[int], E: int) -> Tensor:
    mask = torch.zeros(E, dtype=torch.bool, device="cpu")
    for expert in keep:
        if isinstance(expert, bool | float) or not 0 <= expert < E:
            raise InputError(f"keep: expected expert ids in [0, {E}), got {expert}")
        mask[expert] = True
    return mask


def _copy(scale: Tensor, device: torch.device | str) -> Tensor:
    return scale.detach().to(device, torch.float32, copy=True).contiguous()
