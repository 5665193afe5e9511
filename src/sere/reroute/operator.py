"""``torch.ops.sere.reroute``: the operation as the compiler sees it, opaque."""

from __future__ import annotations

import torch
from torch import Tensor

from sere.reroute.backends.registry import implementation
from sere.reroute.types import Neighbors, Rules

SCHEMA = (
    "reroute(Tensor topk_ids, Tensor topk_weights, Tensor order, Tensor count, Tensor position, "
    "Tensor lists, Tensor keep, Tensor? scale, Tensor? row_budgets, Tensor? num_tokens, "
    "Tensor(a!)? counters, int select_top_k, int min_active, bool active_targets, int merge, "
    "int sentinel, str backend) -> (Tensor, Tensor)"
)

_library = torch.library.Library("sere", "DEF")  # type: ignore[no-untyped-call]
_library.define(SCHEMA)  # type: ignore[no-untyped-call]


def call(
    topk_ids: Tensor,
    topk_weights: Tensor,
    neighbors: Neighbors,
    rules: Rules,
    row_budgets: Tensor | None,
    num_tokens: Tensor | int | None,
    counters: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Call a backend through the operator, with the arguments of the reference backend."""
    if isinstance(num_tokens, int):
        num_tokens = torch.full((), num_tokens, dtype=torch.int32, device=topk_ids.device)
    result: tuple[Tensor, Tensor] = torch.ops.sere.reroute(
        topk_ids, topk_weights,
        neighbors.order, neighbors.count, neighbors.position, neighbors.lists, neighbors.keep,
        neighbors.scale, row_budgets, num_tokens, counters,
        rules.select_top_k, rules.min_active, rules.active_targets, rules.merge, rules.sentinel, backend,
    )  # fmt: skip
    return result


@torch.library.impl(_library, "reroute", "CompositeExplicitAutograd")
def _reroute(
    topk_ids: Tensor,
    topk_weights: Tensor,
    order: Tensor,
    count: Tensor,
    position: Tensor,
    lists: Tensor,
    keep: Tensor,
    scale: Tensor | None,
    row_budgets: Tensor | None,
    num_tokens: Tensor | None,
    counters: Tensor | None,
    select_top_k: int,
    min_active: int,
    active_targets: bool,
    merge: int,
    sentinel: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    neighbors = Neighbors(order, count, position, lists, scale, keep)
    rules = Rules(select_top_k, min_active, active_targets, merge, sentinel)
    return implementation(backend)(
        topk_ids, topk_weights, neighbors, rules, row_budgets, num_tokens, counters
    )


@torch.library.register_fake("sere::reroute", lib=_library)  # type: ignore[untyped-decorator]
def _fake(topk_ids: Tensor, topk_weights: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(topk_ids, memory_format=torch.contiguous_format),
        torch.empty_like(topk_weights, memory_format=torch.contiguous_format),
    )
