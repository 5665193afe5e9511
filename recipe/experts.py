"""A training forward of the experts modules that is fast on a CPU.

The eager forward of Transformers loops over experts under autograd and builds some twenty nodes for each.
Here the slots are sorted by expert once, and forward and backward are plain matrix products per expert: in
``experts.cpp`` where a C++ compiler is at hand, else in torch. Both give what the eager forward gives.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from recipe import native


def _product_forward(
    x: Tensor, rows: Tensor, gates: Tensor, start: Tensor, gate_up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the output ``[T, H]`` and the hidden units before activation, slots in the order of experts."""
    width = down.shape[2]
    hidden, out = x.new_empty(len(rows), 2 * width), torch.zeros_like(x)
    for e, i, j in _segments(start):
        torch.mm(x[rows[i:j]], gate_up[e].t(), out=hidden[i:j])
        gate, up = hidden[i:j].chunk(2, dim=1)
        scaled = (nn.functional.silu(gate) * up).mul_(gates[i:j, None])
        out.index_add_(0, rows[i:j], scaled @ down[e].t())
    return out, hidden


def _product_backward(
    x: Tensor,
    dout: Tensor,
    rows: Tensor,
    gates: Tensor,
    start: Tensor,
    gate_up: Tensor,
    down: Tensor,
    hidden: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, of the gates in the order of experts, and of both weights."""
    dx, dgates = torch.zeros_like(x), torch.zeros_like(gates)
    dgate_up, ddown = torch.zeros_like(gate_up), torch.zeros_like(down)
    for e, i, j in _segments(start):
        dy, xs, scale = dout[rows[i:j]], x[rows[i:j]], gates[i:j, None]
        gate, up = hidden[i:j].chunk(2, dim=1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        dact = dy @ down[e]
        dgates[i:j] = (dact * silu * up).sum(1)
        dact *= scale
        ddown[e] = dy.t() @ (silu * up * scale)
        dhidden = torch.cat([dact * up * (sigmoid + silu * (1 - sigmoid)), dact * silu], dim=1)
        dgate_up[e] = dhidden.t() @ xs
        dx.index_add_(0, rows[i:j], dhidden @ gate_up[e])
    return dx, dgates, dgate_up, ddown


def _segments(start: Tensor) -> list[tuple[int, int, int]]:
    """Return ``(expert, from, to)`` of each expert that has slots."""
    bounds = start.tolist()
    return [(e, i, j) for e, (i, j) in enumerate(pairwise(bounds)) if j > i]


class _GroupedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, gates: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        library = native.load()
        flat = ids.reshape(-1)
        order = torch.argsort(flat, stable=True)
        start = torch.zeros(gate_up.shape[0] + 1, dtype=torch.long)
        torch.cumsum(torch.bincount(flat, minlength=gate_up.shape[0]), 0, out=start[1:])
        rows = torch.div(order, ids.shape[1], rounding_mode="floor")
        sorted_gates = gates.reshape(-1)[order]
        forward = library.forward if library else _product_forward
        out, hidden = forward(x.contiguous(), rows, sorted_gates, start, gate_up, down)
        ctx.save_for_backward(x, rows, sorted_gates, start, gate_up, down, hidden, order)
        ctx.top_k, ctx.backward_of = ids.shape[1], library.backward if library else _product_backward
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest, order = ctx.saved_tensors
        dx, dsorted, dgate_up, ddown = ctx.backward_of(x.contiguous(), grads[0].contiguous(), *rest)
        dgates = torch.empty_like(dsorted)
        dgates[order] = dsorted
        return dx, None, dgates.view(-1, ctx.top_k), dgate_up, ddown


def grouped_experts(x: Tensor, ids: Tensor, gates: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return the gated sum of the chosen experts' outputs.

    Args:
        x: Hidden states, ``[T, H]`` float32.
        ids: Expert ids, ``[T, K]``.
        gates: Gate weights, ``[T, K]``.
        gate_up: ``[E, 2F, H]``, gate rows first.
        down: ``[E, H, F]``.
    """
    out: Tensor = _GroupedExperts.apply(x, ids, gates, gate_up, down)  # type: ignore[no-untyped-call]
    return out


def exchange_siblings(ids: Tensor, gates: Tensor, rows: float, experts: int) -> Tensor:
    """Return the ids with the lighter slots of some rows given to siblings: the same slice, another copy.

    Of a share ``rows`` of the rows, 1 to K - 1 slots, the heaviest, keep their expert; each other slot gets
    expert ``c * K + k`` with the same k and a random c. Copies of a slice then keep something in common.
    """
    top_k = ids.shape[1]
    rank = gates.argsort(dim=1, descending=True).argsort(dim=1)
    kept = torch.randint(1, top_k, (len(ids), 1))
    light = (rank >= kept) & (torch.rand(len(ids), 1) < rows)
    sibling = ids % top_k + top_k * torch.randint(experts // top_k, ids.shape)
    return torch.where(light, sibling, ids)


def use_grouped_experts(model: nn.Module, exchange: float = 0.0) -> list[nn.Module]:
    """Give every experts module of ``model`` the fast forward; return the routers of the same layers.

    With ``exchange``, that share of the rows has siblings exchanged while gradients are taken.
    """
    routers: list[nn.Module] = []
    for module in model.modules():
        if hasattr(module, "experts") and hasattr(module, "gate"):
            experts: Any = module.experts

            def forward(x: Tensor, ids: Tensor, gates: Tensor, experts: Any = experts) -> Tensor:
                if exchange and torch.is_grad_enabled():
                    ids = exchange_siblings(ids, gates, exchange, len(experts.gate_up_proj))
                return grouped_experts(x, ids, gates, experts.gate_up_proj, experts.down_proj)

            experts.forward = forward
            routers.append(module.gate)  # type: ignore[arg-type]
    return routers
