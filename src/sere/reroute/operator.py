"""``torch.ops.sere.reroute``: the operation as the compiler sees it, opaque."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sere.reroute.backends.registry import BackendLayer, implementation
from sere.reroute.batch import Routing, TokenBatch
from sere.reroute.raw_layer import KernelConfig

# ``layer``: a backend's own tensors, in its order, without ``substitutes``.
SCHEMA = (
    "reroute(str backend, Tensor topk_ids, Tensor topk_weights, Tensor? row_budgets, Tensor? num_tokens, "
    "Tensor[] layer, Tensor? substitutes, bool cap, bool active_targets, int merge, int sentinel, "
    "Tensor(a!)? counters) -> (Tensor, Tensor)"
)

_library = torch.library.Library("sere", "DEF")  # type: ignore[no-untyped-call]
_library.define(SCHEMA)  # type: ignore[no-untyped-call]


def call(backend: str, batch: TokenBatch, layer: BackendLayer, counters: Tensor | None) -> Routing:
    """Call a backend through the operator, with the arguments of its ``run``."""
    *tensors, substitutes, config = layer
    num_tokens = batch.num_tokens
    if isinstance(num_tokens, int):
        num_tokens = torch.full((), num_tokens, dtype=torch.int32, device=batch.topk_ids.device)
    ids, weights = torch.ops.sere.reroute(
        backend, batch.topk_ids, batch.topk_weights, batch.row_budgets, num_tokens, tensors, substitutes,
        *config, counters,
    )  # fmt: skip
    return Routing(ids, weights)


@torch.library.impl(_library, "reroute", "CompositeExplicitAutograd")
def _reroute(
    backend: str,
    topk_ids: Tensor,
    topk_weights: Tensor,
    row_budgets: Tensor | None,
    num_tokens: Tensor | None,
    layer: Sequence[Tensor],
    substitutes: Tensor | None,
    cap: bool,
    active_targets: bool,
    merge: int,
    sentinel: int,
    counters: Tensor | None,
) -> tuple[Tensor, Tensor]:
    found = implementation(backend)
    config = KernelConfig(cap, active_targets, merge, sentinel)
    batch = TokenBatch(topk_ids, topk_weights, row_budgets, num_tokens)
    return found.run(batch, found.Layer(*layer, substitutes, config), counters)


@torch.library.register_fake("sere::reroute", lib=_library)  # type: ignore[untyped-decorator]
def _fake(_: str, topk_ids: Tensor, topk_weights: Tensor, *__: object) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(topk_ids, memory_format=torch.contiguous_format),
        torch.empty_like(topk_weights, memory_format=torch.contiguous_format),
    )
