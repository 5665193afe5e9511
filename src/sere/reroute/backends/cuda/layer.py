"""What the kernel reads of a layer: neighbors down to the threshold, eight experts side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sere.reroute.backends import torch_ops
from sere.reroute.neighbors import rank_neighbors
from sere.reroute.raw_layer import KernelConfig, RawLayer

# As in call.cuh: a warp reads 32 neighbors of eight experts at once.
WARP, GROUP = 32, 8


class Layer(NamedTuple):
    """What this backend reads, contiguous.

    Attributes:
        lists: ``[E / 8, E / 32, 32, 8]``, int16, both rounded up; each expert's neighbors that reach the
            threshold, most similar first, then only the expert itself. The last axis is eight experts.
        limits, keep, sensitivity, substitutes, config: As ``RawLayer.shared`` returns them.
    """

    lists: Tensor
    limits: Tensor
    keep: Tensor
    sensitivity: Tensor
    substitutes: Tensor | None
    config: KernelConfig


def prepare(raw: RawLayer, device: torch.device) -> Layer:
    """Sort each expert's neighbors, cut them at the threshold and lay eight experts side by side."""
    order, counts = rank_neighbors(raw.similarity, raw.threshold)
    E = order.shape[0]
    groups, pieces = -(-E // GROUP), -(-E // WARP)
    # Experts that only fill the last group up repeat the last one.
    itself = torch.arange(GROUP * groups, device="cpu").clamp(max=E - 1)[:, None]
    lists = itself.repeat(1, WARP * pieces)
    lists[:E, :E] = torch.where(torch.arange(E, device="cpu") < counts[:, None], order, itself[:E])
    side_by_side = lists.reshape(groups, GROUP, pieces, WARP).permute(0, 2, 3, 1)
    return Layer(side_by_side.to(torch.int16).contiguous().to(device), *raw.shared(device))


def for_torch(layer: Layer) -> torch_ops.Layer:
    """Return the same layer for the torch backend, made on the device without waiting for it."""
    E = layer.keep.shape[0]
    groups, pieces, *_ = layer.lists.shape
    by_expert = layer.lists.permute(0, 3, 1, 2).reshape(GROUP * groups, WARP * pieces)[:E, :E].long()
    ranks = torch.arange(E, dtype=torch.int32, device=layer.lists.device).expand(E, E)
    position = torch.full((E, E), E, dtype=torch.int32, device=layer.lists.device)
    # The expert itself fills the rest of its list; it is no neighbor.
    position = position.scatter(1, by_expert, ranks).fill_diagonal_(E)
    return torch_ops.Layer(position, *layer[1:])
