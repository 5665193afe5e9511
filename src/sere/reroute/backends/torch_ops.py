"""The ``torch`` backend: whole-tensor operations, no host synchronization, any device.

Shapes depend on T, K and E only, so that the operations can be compiled with ``fullgraph=True`` and
captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sere.reroute.slots import fill_up, has_weight, members, real_rows, weight_ranks
from sere.reroute.types import Neighbors, Rules


def run(
    topk_ids: Tensor,
    topk_weights: Tensor,
    neighbors: Neighbors,
    rules: Rules,
    row_budgets: Tensor | None,
    num_tokens: Tensor | int | None,
    counters: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Re-route with tensor operations; arguments and result as in the reference backend.

    Source: docs/method.md section 4.
    """
    ids = topk_ids.long()
    E = neighbors.keep.shape[0]
    real = real_rows(ids, row_budgets, num_tokens)
    inside = (ids >= 0) & (ids < E)
    valid = inside & has_weight(topk_weights) & real[:, None]
    budget = rules.select_top_k if row_budgets is None else row_budgets[:, None]
    kept = valid & (weight_ranks(topk_weights, valid) < budget)

    occurring = members(ids, valid, E)
    primary = members(ids, kept, E) | (neighbors.keep & occurring)
    if rules.min_active > 0:
        primary = primary | fill_up(primary, occurring, ids, topk_weights, valid, rules.min_active)

    secondary = occurring & ~primary
    best = _best_position(neighbors, primary)
    critical = secondary & (best == E)
    active = primary | critical
    if rules.active_targets:
        best = torch.where(critical, best, _best_position(neighbors, active))
    experts = torch.arange(E, device=ids.device)
    replaced = secondary & ~critical
    found = neighbors.order.gather(1, best.clamp(max=E - 1)[:, None]).squeeze(1).long()
    target = torch.where(replaced, found, experts)

    safe = torch.where(inside, ids, 0)
    new_ids = torch.where(valid, target[safe], ids)
    moved = valid & (new_ids != ids)
    new_weights = topk_weights.double()
    if neighbors.scale is not None:
        factors = neighbors.scale[safe, torch.where(valid, new_ids, 0)].double()
        new_weights = torch.where(moved, new_weights * factors, new_weights)

    lowest = torch.where(primary, experts, E).amin()
    some_primary = lowest < E
    padding = inside & ~real[:, None]
    new_ids = torch.where(padding, lowest, new_ids)
    new_weights = torch.where(padding, 0.0, new_weights)
    if rules.merge != 0:
        new_ids, new_weights = _merge(new_ids, new_weights, valid | padding, padding, active, rules)

    if counters is not None:
        _count(counters, some_primary, real, occurring, active, valid, moved, critical)
    # P empty: nothing changes, padding rows included. Slots that pass through keep their bits, NaN's too.
    new_ids = torch.where(some_primary, new_ids, ids).to(topk_ids.dtype)
    changed = some_primary & (valid | padding)
    return new_ids, torch.where(changed, new_weights.to(topk_weights.dtype), topk_weights)


def _best_position(neighbors: Neighbors, candidates: Tensor) -> Tensor:
    """Where each expert's most similar candidate stands in its list, ``[E]``; E if there is none."""
    E = candidates.shape[0]
    return torch.where(candidates[None, :], neighbors.position.long(), E).amin(dim=1)


def _merge(
    ids: Tensor, weights: Tensor, slots: Tensor, padding: Tensor, active: Tensor, rules: Rules
) -> tuple[Tensor, Tensor]:
    """Sum the weights of equal ids of a row into the lowest slot; give the other slots weight 0."""
    K = ids.shape[1]
    slot = torch.arange(K, device=ids.device)
    same = (ids[:, :, None] == ids[:, None, :]) & slots[:, :, None] & slots[:, None, :]
    freed = (same & (slot[None, :] < slot[:, None])).any(dim=2)
    # In the order of the slots, as the reference adds: another order rounds otherwise. -0 adds nothing.
    shares = torch.where(same, weights[:, None, :], -0.0).unbind(dim=2)
    weights = torch.where(freed, 0.0, torch.where(slots, sum(shares[1:], shares[0]), weights))
    if rules.merge == 3:
        return torch.where(freed | padding, rules.sentinel, ids), weights
    if rules.merge == 2:
        ids = _fill_distinct(ids, freed, active)
    return ids, weights


def _fill_distinct(ids: Tensor, freed: Tensor, active: Tensor) -> Tensor:
    """Give freed slots, in slot order, the lowest active ids that are not yet in their row."""
    T, K = ids.shape
    E = active.shape[0]
    index = torch.where(~freed & (ids >= 0) & (ids < E), ids, E)
    present = torch.zeros(T, E + 1, dtype=torch.bool, device=ids.device)
    present = present.scatter(1, index, torch.ones_like(index, dtype=torch.bool))[:, :E]
    experts = torch.arange(E, device=ids.device)
    columns = []
    for k in range(K):
        free = torch.where(active & ~present, experts, E).amin(dim=1)
        use = freed[:, k] & (free < E)
        columns.append(torch.where(use, free, ids[:, k]))
        present = present | (use[:, None] & (experts == free[:, None]))
    return torch.stack(columns, dim=1)


def _count(
    counters: Tensor,
    some_primary: Tensor,
    real: Tensor,
    occurring: Tensor,
    active: Tensor,
    valid: Tensor,
    moved: Tensor,
    critical: Tensor,
) -> None:
    one = torch.ones_like(some_primary)
    sums = [one, real.sum(), occurring.sum(), active.sum(), valid.sum(), moved.sum(), critical.sum()]
    counters.add_(torch.stack([torch.where(some_primary, s, 0) for s in sums]).to(counters.dtype))
