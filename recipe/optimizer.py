"""Muon for the matrices and AdamW for the rest, as one pair of optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from recipe.settings import Settings


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices, roughly, of ``[..., M, N]``.

    Source: Newton-Schulz iteration of Muon (Jordan et al., 2024); the coefficients are theirs.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized; for matrices and stacks of matrices."""

    def __init__(self, params: Iterable[dict[str, Any]], momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(params, {"momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, _closure: Any = None) -> None:  # type: ignore[override]
        """Apply one update."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                buffer.lerp_(param.grad, 1 - group["momentum"])
                update = orthogonalize(param.grad.lerp(buffer, group["momentum"]))
                # Root mean square of an update as Adam's has it (Liu et al., 2025): 0.2 at lr 1.
                size = 0.2 * max(param.shape[-2:]) ** 0.5
                param.mul_(1 - group["lr"] * group["decay"])
                param.add_(update, alpha=-group["lr"] * size)


def build(model: nn.Module, settings: Settings, factor: float) -> list[torch.optim.Optimizer]:
    """Return the optimizers; each group keeps its peak rate as ``peak``."""
    matrices, attention, routers, others = [], [], [], []
    for name, param in model.named_parameters():
        if ".mlp.gate.weight" in name:
            routers.append(param)
        elif param.ndim >= 2 and name.split(".")[-2] in ("q_proj", "k_proj"):
            attention.append(param)
        elif param.ndim >= 2 and ".layers." in name and "shared_expert_gate" not in name:
            matrices.append(param)
        else:
            others.append(param)
    adam = [{"params": others, "lr": factor * settings.other_lr}]
    if routers:
        adam.append({"params": routers, "lr": settings.router_lr})
    optimizers: list[torch.optim.Optimizer] = [
        Muon(
            [
                {"params": matrices, "lr": factor * settings.matrix_lr},
                {"params": attention, "lr": factor * settings.matrix_lr * settings.query_key_factor},
            ]
        ),
        torch.optim.AdamW(adam, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers
