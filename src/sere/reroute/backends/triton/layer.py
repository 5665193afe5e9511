"""What the Triton programs read of a layer: what the torch backend reads, with positions of 16 bits."""

from __future__ import annotations

import torch

from sere.reroute.backends import torch_ops
from sere.reroute.backends.torch_ops import Layer
from sere.reroute.raw_layer import RawLayer


def prepare(raw: RawLayer, device: torch.device) -> Layer:
    """Prepare as the torch backend does, but ``position`` is int16: a layer has at most 1024 experts."""
    layer = torch_ops.prepare(raw, device)
    return layer._replace(position=layer.position.to(torch.int16))


def for_torch(layer: Layer) -> Layer:
    """Return the same layer for the torch backend."""
    return layer._replace(position=layer.position.int())
