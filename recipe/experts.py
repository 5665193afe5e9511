"""A training forward of the experts modules that is fast on a CPU.

The eager forward of Transformers loops over experts under autograd and builds some twenty nodes for each.
Here the slots are sorted by expert once, and forward and backward are plain matrix products per expert: in
``experts.cpp`` if there is a C++ compiler, else in torch (``products.py``). Both give what the eager forward
gives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recipe import native, products
from recipe.products import Slots


class _GroupedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, gates: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        order = torch.argsort(flat, stable=True)
        start = torch.zeros(gate_up.shape[0] + 1, dtype=torch.long)
        torch.cumsum(torch.bincount(flat, minlength=gate_up.shape[0]), 0, out=start[1:])
        rows = torch.div(order, ids.shape[1], rounding_mode="floor")
        slots = Slots(x.contiguous(), rows, gates.reshape(-1)[order], start, gate_up, down)
        ctx.computed_by = native.load() or products
        out: Tensor
        out, hidden = ctx.computed_by.forward(slots)
        ctx.save_for_backward(*slots, hidden, order)
        ctx.top_k = ids.shape[1]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *saved, hidden, order = ctx.saved_tensors
        found = ctx.computed_by.backward(Slots(*saved), grads[0].contiguous(), hidden)
        dgates = torch.empty_like(found.gates)
        dgates[order] = found.gates
        return found.x, None, dgates.view(-1, ctx.top_k), found.gate_up, found.down


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
