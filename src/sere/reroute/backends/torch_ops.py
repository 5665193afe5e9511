"""The ``torch`` backend: tensor operations on any device, without host synchronization.

Shapes depend on T, K and E only, so that the operations can be compiled with ``fullgraph=True`` and
captured in a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sere.reroute.batch import Routing, TokenBatch
from sere.reroute.constants import GAIN_UNITS, LIMIT_ROWS, MERGE_DISTINCT, MERGE_NONE, MERGE_SENTINEL
from sere.reroute.neighbors import rank_neighbors
from sere.reroute.raw_layer import KernelConfig, RawLayer
from sere.reroute.slots import (
    choose_primary,
    expert_masses,
    has_weight,
    members,
    real_rows,
    weight_ranks,
    whole_budgets,
)
from sere.reroute.stats import COUNTERS


class Layer(NamedTuple):
    """What this backend reads.

    Attributes:
        position: ``[E, E]``, int32; the position of p among the neighbors of e, 0 for the most similar; E
            where p is below the threshold, unknown, or e itself.
        limits, keep, sensitivity, substitutes, config: As ``RawLayer.shared`` returns them.
    """

    position: Tensor
    limits: Tensor
    keep: Tensor
    sensitivity: Tensor
    substitutes: Tensor | None
    config: KernelConfig


def prepare(raw: RawLayer, device: torch.device) -> Layer:
    """Turn each expert's sorted neighbors into the position of every expert among them."""
    order, counts = rank_neighbors(raw.similarity, raw.threshold)
    E = order.shape[0]
    position = torch.empty_like(order).scatter_(1, order, torch.arange(E, device="cpu").expand(E, E))
    position = torch.where(position < counts[:, None], position, E)
    return Layer(position.to(device, torch.int32), *raw.shared(device))


def run(batch: TokenBatch, layer: Layer, counters: Tensor | None) -> Routing:
    """Re-route with tensor operations; arguments and result as in the reference backend.

    Source: docs/method.md section 4.
    """
    topk_ids, topk_weights, row_budgets, num_tokens, _ = batch
    config = layer.config
    ids = topk_ids.long()
    E = layer.keep.shape[0]
    real = real_rows(ids, row_budgets, num_tokens)
    inside = (ids >= 0) & (ids < E)
    valid = inside & has_weight(topk_weights) & real[:, None]
    T, K = ids.shape
    budgets = whole_budgets(row_budgets, layer.limits[0], T, ids.device)
    protected = real & (budgets >= K)
    of_open_rows = valid & ~protected[:, None]
    kept = of_open_rows & (weight_ranks(topk_weights, valid) < budgets[:, None])

    of_protected_rows, chosen = members(ids, valid & protected[:, None], E), members(ids, of_open_rows, E)
    occurring = of_protected_rows | chosen
    rows = (real & ~protected).sum().clamp(1, LIMIT_ROWS)
    mass = expert_masses(ids, topk_weights, of_open_rows, layer.sensitivity)
    # Taken, not indexed: an index that is a tensor without axes would be read on the host.
    most = layer.limits.take(rows)
    primary = of_protected_rows | choose_primary(
        layer.keep, members(ids, kept, E), chosen, mass, most, cap=config.cap
    )

    secondary = occurring & ~primary
    found, substitute = _most_similar(layer, primary)
    critical = secondary & ~found
    active = primary | critical
    if config.active_targets:
        _, substitute = _most_similar(layer, active)
    experts = torch.arange(E, device=ids.device)
    target = torch.where(secondary & ~critical, substitute, experts)

    safe = torch.where(inside, ids, 0)
    new_ids = torch.where(valid, target[safe], ids)
    rerouted = valid & (new_ids != ids)
    weights = topk_weights.double()
    new_weights, stays = weights, torch.ones_like(valid)
    if layer.substitutes is not None:
        pairs = layer.substitutes[safe, torch.where(valid, new_ids, 0)].double()
        new_weights = torch.where(rerouted, weights * pairs[..., 0], weights)
        gains = weights * weights * pairs[..., 1]
        # Not at least: where a gain is not known, NaN, the slot stays.
        stays = ~(rerouted & (gains < _least_gains(layer, weights, valid)[:, None]))

    lowest = torch.where(primary, experts, E).amin()
    some_primary = lowest < E
    padding = inside & ~real[:, None]
    new_ids = torch.where(padding, lowest, new_ids)
    new_weights = torch.where(padding, 0.0, new_weights)
    if config.merge != MERGE_NONE:
        new_ids, new_weights, stays = _merge(
            new_ids, new_weights, stays, valid | padding, padding, active, config
        )
    new_weights = torch.where(stays, new_weights, 0.0)

    if counters is not None:
        computed = valid & (new_weights != 0)
        _count(counters, some_primary, real, occurring, active, valid, rerouted, computed, critical)
    # P empty: nothing changes, padding rows included. Slots that pass through keep their bits, NaN's too.
    new_ids = torch.where(some_primary, new_ids, ids).to(topk_ids.dtype)
    changed = some_primary & (valid | padding)
    return Routing(new_ids, torch.where(changed, new_weights.to(topk_weights.dtype), topk_weights))


def _most_similar(layer: Layer, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a candidate is among each expert's neighbors, ``[E]`` bool, and the nearest, ``[E]`` int64."""
    E = candidates.shape[0]
    nearest = torch.where(candidates[None, :], layer.position, E).min(dim=1)
    return nearest.values < E, nearest.indices


def _least_gains(layer: Layer, weights: Tensor, valid: Tensor) -> Tensor:
    """Return the gain that a slot of each row must have to stay, ``[T]`` float64."""
    squares = torch.where(valid, weights * weights, 0.0).unbind(dim=1)
    # In the order of the slots, as the reference adds.
    return -layer.limits[-1].double() / GAIN_UNITS * sum(squares[1:], squares[0])


def _merge(
    ids: Tensor,
    weights: Tensor,
    stays: Tensor,
    slots: Tensor,
    padding: Tensor,
    active: Tensor,
    config: KernelConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the weights of equal ids of a row into the lowest slot, which stays if one of them would."""
    K = ids.shape[1]
    slot = torch.arange(K, device=ids.device)
    same = (ids[:, :, None] == ids[:, None, :]) & slots[:, :, None] & slots[:, None, :]
    freed = (same & (slot[None, :] < slot[:, None])).any(dim=2)
    # In the order of the slots, as the reference adds: another order rounds otherwise. -0 adds nothing.
    shares = torch.where(same, weights[:, None, :], -0.0).unbind(dim=2)
    weights = torch.where(freed, 0.0, torch.where(slots, sum(shares[1:], shares[0]), weights))
    stays = freed | ~slots | (same & stays[:, None, :]).any(dim=2)
    if config.merge == MERGE_SENTINEL:
        ids = torch.where(freed | padding | ~stays, config.sentinel, ids)
    elif config.merge == MERGE_DISTINCT:
        ids = _fill_distinct(ids, freed, active)
    return ids, weights, stays


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
    rerouted: Tensor,
    computed: Tensor,
    critical: Tensor,
) -> None:
    step = {
        "steps": torch.ones_like(some_primary),
        "rows": real.sum(),
        "distinct_before": occurring.sum(),
        "distinct_after": active.sum(),
        "slots": valid.sum(),
        "slots_rerouted": rerouted.sum(),
        "slots_computed": computed.sum(),
        "critical": critical.sum(),
    }
    sums = [torch.where(some_primary, step[name], 0) for name in COUNTERS]
    counters.add_(torch.stack(sums).to(counters.dtype))
