"""The specification of re-routing in plain loops; every other backend must equal it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sere.reroute.slots import MASS_BOUND, MASS_UNITS
from sere.reroute.types import Neighbors, Rules

Row = list[int]


def run(
    topk_ids: Tensor,
    topk_weights: Tensor,
    neighbors: Neighbors,
    rules: Rules,
    row_budgets: Tensor | None,
    num_tokens: Tensor | int | None,
    counters: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Re-route in plain loops over rows, slots and experts.

    Args:
        topk_ids: ``[T, K]``, int32 or int64.
        topk_weights: ``[T, K]``, floating point.
        neighbors: The layer, prepared.
        rules: The settings.
        row_budgets: ``[T]``, integers, or None; negative marks a padding row.
        num_tokens: N, or None for T.
        counters: int64, one entry per name in ``COUNTERS``, incremented in place, or None.

    Returns:
        New ids and weights.

    Source: docs/method.md section 4; the steps below carry its numbers.
    """
    ids: list[Row] = topk_ids.tolist()
    weights: list[list[float]] = topk_weights.double().tolist()
    T, K = topk_ids.shape
    E = neighbors.keep.shape[0]
    N = T if num_tokens is None else max(0, min(T, int(num_tokens)))
    budget = [rules.select_top_k] * T if row_budgets is None else [int(b) for b in row_budgets.tolist()]

    # 1. Validity.
    real = [t for t in range(T) if t < N and budget[t] >= 0]
    slots = {t: [k for k in range(K) if 0 <= ids[t][k] < E and _counts(weights[t][k])] for t in real}
    occurring = {ids[t][k] for t in real for k in slots[t]}

    # 2. Budget: the heaviest slots of each row.
    kept = {t: _heaviest(slots[t], weights[t], budget[t]) for t in real}

    # 3. Primary set.
    primary = {ids[t][k] for t in real for k in kept[t]}
    primary |= {e for e in occurring if bool(neighbors.keep[e])}
    primary |= _fill_up(primary, occurring, ids, weights, slots, rules.min_active)
    if not primary:
        return topk_ids.clone(), topk_weights.clone()

    # 4. Secondary experts, 5. targets.
    target = {e: _most_similar(e, primary, neighbors) for e in occurring - primary}
    critical = {e for e, p in target.items() if p is None}
    active = primary | critical
    if rules.active_targets:
        target = {e: _most_similar(e, active, neighbors) for e in target if e not in critical}

    # 6. Weights, 7. merge, 8. padding rows.
    moved = 0
    changed = torch.zeros(T, K, dtype=torch.bool, device=topk_weights.device)
    for t in range(T):
        if t not in slots:
            inside = [k for k in range(K) if 0 <= ids[t][k] < E]
            for k in inside:
                ids[t][k], weights[t][k] = min(primary), 0.0
            changed[t, inside] = True
            _merge(ids[t], weights[t], inside, active, rules, padding=True)
            continue
        for k in slots[t]:
            e = ids[t][k]
            p = target.get(e)
            if p is not None:
                ids[t][k] = p
                moved += 1
                if neighbors.scale is not None:
                    weights[t][k] *= float(neighbors.scale[e, p])
        changed[t, slots[t]] = True
        _merge(ids[t], weights[t], slots[t], active, rules, padding=False)

    if counters is not None:
        step = (
            1,
            len(real),
            len(occurring),
            len(active),
            sum(map(len, slots.values())),
            moved,
            len(critical),
        )
        counters += counters.new_tensor(step)
    new_weights = topk_weights.new_tensor(weights).reshape(T, K)
    # Slots that pass through keep their bits, whatever these are.
    new_weights = torch.where(changed, new_weights, topk_weights)
    return topk_ids.new_tensor(ids).reshape(T, K), new_weights


def _counts(weight: float) -> bool:
    return weight != 0 and not math.isnan(weight)


def _heaviest(slots: Row, weights: list[float], budget: int) -> Row:
    return sorted(slots, key=lambda k: (-weights[k], k))[:budget]


def _fill_up(
    primary: set[int],
    occurring: set[int],
    ids: list[Row],
    weights: list[list[float]],
    slots: dict[int, Row],
    min_active: int,
) -> set[int]:
    """Return the experts that join P so that it has ``min_active``, by mass (ties: lower id)."""
    mass = dict.fromkeys(occurring - primary, 0)
    for t, valid in slots.items():
        for k in valid:
            if ids[t][k] in mass:
                mass[ids[t][k]] += round(max(-MASS_BOUND, min(MASS_BOUND, weights[t][k] * MASS_UNITS)))
    by_mass = sorted(mass, key=lambda e: (-mass[e], e))
    return set(by_mass[: max(0, min_active - len(primary))])


def _most_similar(e: int, candidates: set[int], neighbors: Neighbors) -> int | None:
    """Return the candidate most similar to ``e`` (ties: lower id), or None if all are below the threshold."""
    for p in neighbors.order[e, : int(neighbors.count[e])].tolist():
        if p in candidates:
            return int(p)
    return None


def _merge(
    ids: Row, weights: list[float], slots: Row, active: set[int], rules: Rules, *, padding: bool
) -> None:
    """Sum the weights of equal ids into the lowest slot and free the others, in place."""
    if padding and rules.merge == 3:
        for k in slots:
            ids[k] = rules.sentinel
        return
    if rules.merge == 0:
        return
    first: dict[int, int] = {}
    freed = []
    for k in slots:
        if ids[k] in first:
            weights[first[ids[k]]] += weights[k]
            weights[k] = 0.0
            freed.append(k)
        else:
            first[ids[k]] = k
    taken = {ids[k] for k in range(len(ids)) if k not in freed}
    for k in freed:
        if rules.merge == 3:
            ids[k] = rules.sentinel
        elif rules.merge == 2:
            fillers = sorted(active - taken)
            if fillers:
                ids[k] = fillers[0]
                taken.add(fillers[0])
