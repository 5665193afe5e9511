"""The experts' forward and backward as plain matrix products per expert, in torch."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Slots(NamedTuple):
    """The slots of a batch, sorted by expert, with what the experts compute from.

    Attributes:
        x: Hidden states, ``[T, H]`` float32.
        rows: Row of ``x`` per slot, ``[T * K]``.
        gates: Gate weight per slot, ``[T * K]``.
        start: First slot of each expert, ``[E + 1]``; the last entry is T * K.
        gate_up: ``[E, 2F, H]``, gate rows first.
        down: ``[E, H, F]``.
    """

    x: Tensor
    rows: Tensor
    gates: Tensor
    start: Tensor
    gate_up: Tensor
    down: Tensor


class Gradients(NamedTuple):
    """The gradients of ``x``, of the gates (sorted by expert) and of both weights."""

    x: Tensor
    gates: Tensor
    gate_up: Tensor
    down: Tensor

    @classmethod
    def zeros(cls, slots: Slots) -> Gradients:
        """Return gradients of 0."""
        return cls(*map(torch.zeros_like, (slots.x, slots.gates, slots.gate_up, slots.down)))


def forward(slots: Slots) -> tuple[Tensor, Tensor]:
    """Return the output ``[T, H]``, and the hidden units before activation, ``[T * K, 2F]``, as the slots."""
    x, rows, gates, start, gate_up, down = slots
    hidden, out = x.new_empty(len(rows), gate_up.shape[1]), torch.zeros_like(x)
    for e, i, j in _segments(start):
        torch.mm(x[rows[i:j]], gate_up[e].t(), out=hidden[i:j])
        gate, up = hidden[i:j].chunk(2, dim=1)
        scaled = (nn.functional.silu(gate) * up).mul_(gates[i:j, None])
        out.index_add_(0, rows[i:j], scaled @ down[e].t())
    return out, hidden


def backward(slots: Slots, dout: Tensor, hidden: Tensor) -> Gradients:
    """Return the gradients.

    Args:
        slots: As for `forward`.
        dout: Gradient of the output, ``[T, H]``.
        hidden: What `forward` returned.
    """
    x, rows, gates, start, gate_up, down = slots
    found = Gradients.zeros(slots)
    for e, i, j in _segments(start):
        dy, xs, scale = dout[rows[i:j]], x[rows[i:j]], gates[i:j, None]
        gate, up = hidden[i:j].chunk(2, dim=1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        dact = dy @ down[e]
        found.gates[i:j] = (dact * silu * up).sum(1)
        dact *= scale
        found.down[e] = dy.t() @ (silu * up * scale)
        dhidden = torch.cat([dact * up * (sigmoid + silu * (1 - sigmoid)), dact * silu], dim=1)
        found.gate_up[e] = dhidden.t() @ xs
        found.x.index_add_(0, rows[i:j], dhidden @ gate_up[e])
    return found


def _segments(start: Tensor) -> list[tuple[int, int, int]]:
    """Return ``(expert, from, to)`` of each expert that has slots."""
    bounds = start.tolist()
    return [(e, i, j) for e, (i, j) in enumerate(pairwise(bounds)) if j > i]
