"""What the Triton programs read of a layer: the place of every expert among the neighbors of every other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sere.reroute.backends import torch_ops
from sere.reroute.raw_layer import KernelConfig, RawLayer


class Layer(NamedTuple):
    """What this backend reads, contiguous.

    Attributes:
        position: ``[E, E]``, int16; as ``position`` of the torch backend.
        limits, keep, sensitivity, substitutes, config: As ``RawLayer.shared`` returns them.
    """

    position: Tensor
    limits: Tensor
    keep: Tensor
    sensitivity: Tensor
    substitutes: Tensor | None
    config: KernelConfig


def prepare(raw: RawLayer, device: torch.device) -> Layer:
    """Prepare as the torch backend does, with positions of 16 bits: a layer has at most 1024 experts."""
    made = torch_ops.prepare(raw, device)
    return Layer(made.position.to(torch.int16), *made[1:])


def for_torch(layer: Layer) -> torch_ops.Layer:
    """Return the same layer for the torch backend."""
    return torch_ops.Layer(layer.position.int(), *layer[1:])
