"""What the benchmarks of re-routing have in common: layer shapes of models that people serve, and batches."""

from __future__ import annotations

import torch
from torch import Tensor

# (model, E, K).
SHAPES = (
    ("Mixtral-8x7B", 8, 2),
    ("Qwen1.5-MoE-A2.7B", 60, 4),
    ("DeepSeek-V2-Lite", 64, 6),
    ("Qwen3-30B-A3B", 128, 8),
    ("DeepSeek-V3", 256, 8),
    ("Qwen3-Next-80B-A3B", 512, 10),
)


def make_batches(count: int, T: int, E: int, K: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of ids (int32) and weights (float32), ``[T, K]``, of a router that prefers some experts.

    Args:
        count: Number of batches; they prefer the same experts.
        T: Rows.
        E: Experts.
        K: Slots per row, in the order of their weights.
    """
    generator = torch.Generator().manual_seed(T * E + K)
    popular = torch.randn(E, generator=generator)
    logits = torch.randn(count, T, E, generator=generator) + popular
    pairs = [row.softmax(dim=1).topk(K, dim=1) for row in logits]
    return [(ids.int(), weights) for weights, ids in pairs]


def make_similarities(count: int, E: int) -> list[Tensor]:
    """Return random similarities of ``count`` layers, ``[E, E]`` each, with ones on the diagonal."""
    generator = torch.Generator().manual_seed(E)
    return [torch.rand(E, E, generator=generator).fill_diagonal_(1.0) for _ in range(count)]
