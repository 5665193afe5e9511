"""Several decode steps in one forward pass, each routed on its own: small batches are measured sooner.

Rows of a pass meet in routing only, so each group of B rows computes what a step of B rows computes, up to
rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sere.engines.wrapped import WrappedPolicy
from sere.integrations.transformers.inputs import has_full_attention_cache
from sere.policies.base import LayerRouter, LayerShape, Policy
from sere.reroute import Routing, TokenBatch

# Rows of a pass if the steps are smaller: a pass takes hardly longer than one of a few rows.
_ROWS = 64


def rows_at_once(model: Any, batch_size: int, count: int) -> int:
    """Return how many rows a forward pass has that holds steps of ``batch_size`` rows.

    Args:
        model: A causal language model of Transformers. One whose cache is not of plain full attention is
            decoded in groups that end together: its passes hold one step.
        batch_size: B.
        count: How many texts there are; the last ones leave rows empty, so half of them at most.

    Returns:
        A multiple of B; or ``count``, if that is less than B.
    """
    if count <= batch_size or not has_full_attention_cache(model):
        return min(batch_size, count)
    return max(1, min(_ROWS, count // 2) // batch_size) * batch_size


class SideBySide(WrappedPolicy):
    """A rule for passes of several steps: each group of B rows is routed, and counted, as a step of its own.

    Args:
        policy: The rule.
        batch_size: B.
    """

    def __init__(self, policy: Policy, batch_size: int) -> None:
        super().__init__(policy)
        self._batch_size = batch_size

    def bind(self, layer: LayerShape, device: torch.device) -> LayerRouter:
        """Return a router that splits its rows into steps."""
        return _Router(self.policy.bind(layer, device), self._batch_size)


class _Router(LayerRouter):
    """Hands each group of B rows to a router."""

    def __init__(self, inner: LayerRouter, batch_size: int) -> None:
        super().__init__(inner.layer, inner.counters.device)
        self._inner, self._batch_size = inner, batch_size
        self.counters = inner.counters

    def __call__(self, batch: TokenBatch) -> Routing:
        """Route all steps of a pass; see `LayerRouter`."""
        B, T = self._batch_size, len(batch.topk_ids)
        if T <= B:
            return self._inner(batch)
        steps = [self._inner(_rows(batch, first, min(B, T - first))) for first in range(0, T, B)]
        return Routing(*(torch.cat(parts) for parts in zip(*steps, strict=True)))

    def tensors(self) -> dict[str, Tensor]:
        """Return those of the router that decides."""
        return self._inner.tensors()


def _rows(batch: TokenBatch, first: int, count: int) -> TokenBatch:
    """Return some rows of a batch as a batch."""

    def cut(one: Tensor | None) -> Any:
        return None if one is None else one[first : first + count]

    real = batch.num_tokens
    if isinstance(real, Tensor):
        real = (real - first).clamp(0, count)
    elif real is not None:
        real = min(max(real - first, 0), count)
    return TokenBatch(
        cut(batch.topk_ids), cut(batch.topk_weights), cut(batch.row_budgets), real, cut(batch.router_scores)
    )
