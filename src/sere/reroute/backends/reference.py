"""The specification of re-routing in plain loops; every other backend must equal it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sere.reroute.batch import Routing, TokenBatch
from sere.reroute.constants import (
    GAIN_UNITS,
    LAYER_BUDGET,
    LIMIT_ROWS,
    MASS_BOUND,
    MASS_UNITS,
    MERGE_DISTINCT,
    MERGE_NONE,
    MERGE_SENTINEL,
)
from sere.reroute.raw_layer import KernelConfig, RawLayer
from sere.reroute.stats import COUNTERS

Row = list[int]


class Layer(NamedTuple):
    """What this backend reads: the layer as it is.

    Attributes:
        similarity: ``[E, E]``, float32; NaN where it is not known.
        threshold: ρ, ``[]``, float32.
        limits, keep, sensitivity, substitutes, config: As ``RawLayer.shared`` returns them.
    """

    similarity: Tensor
    threshold: Tensor
    limits: Tensor
    keep: Tensor
    sensitivity: Tensor
    substitutes: Tensor | None
    config: KernelConfig


def prepare(raw: RawLayer, device: torch.device) -> Layer:
    """Copy the layer to a device."""
    threshold = torch.tensor(raw.threshold, dtype=torch.float32, device=device)
    return Layer(raw.similarity.to(device, copy=True), threshold, *raw.shared(device))


def run(batch: TokenBatch, layer: Layer, counters: Tensor | None) -> Routing:
    """Re-route in plain loops over rows, slots and experts.

    Args:
        batch: The step, checked.
        layer: The layer, prepared.
        counters: int64, one entry per name in ``COUNTERS``, incremented in place, or None.

    Returns:
        New ids and weights.

    Source: docs/method.md section 4; the steps below carry its numbers.
    """
    topk_ids, topk_weights, row_budgets, num_tokens, _ = batch
    config = layer.config
    ids: list[Row] = topk_ids.tolist()
    weights: list[list[float]] = topk_weights.double().tolist()
    T, K = topk_ids.shape
    E = layer.keep.shape[0]
    N = T if num_tokens is None else max(0, min(T, int(num_tokens)))
    own, *most_active, least_gain = layer.limits.tolist()
    given: Row = [LAYER_BUDGET] * T if row_budgets is None else row_budgets.tolist()
    budget = [own if b == LAYER_BUDGET else b for b in given]

    # 1. Validity.
    real = [t for t in range(T) if t < N and budget[t] >= 0]
    slots = {t: [k for k in range(K) if 0 <= ids[t][k] < E and _counts(weights[t][k])] for t in real}
    occurring = _experts(ids, slots)

    # 2. Budget: protected rows; the heaviest slots of each other row.
    protected = {t: slots[t] for t in real if budget[t] >= K}
    others = {t: slots[t] for t in real if budget[t] < K}
    kept = {t: _heaviest(others[t], weights[t], budget[t]) for t in others}

    # 3. Primary set.
    rows = max(1, min(LIMIT_ROWS, len(others)))
    chosen, heaviest = _experts(ids, others), _experts(ids, kept)
    fixed = {e for e in chosen if bool(layer.keep[e])}
    sensitivity: list[float] = layer.sensitivity.double().tolist()
    mass = {e: units * sensitivity[e] for e, units in _masses(ids, weights, others).items()}
    order = _order(chosen, fixed, heaviest, mass)
    least = len(fixed) if config.cap else len(fixed | heaviest)
    primary = _experts(ids, protected) | set(order[: max(least, most_active[rows - 1])])
    if not primary:
        return Routing(topk_ids.clone(), topk_weights.clone())

    # 4. Secondary experts, 5. targets.
    target = {e: _most_similar(e, primary, layer) for e in occurring - primary}
    critical = {e for e, p in target.items() if p is None}
    active = primary | critical
    if config.active_targets:
        target = {e: _most_similar(e, active, layer) for e in target if e not in critical}

    # 6. Weights, 7. merge, 8. padding rows, 9. gain.
    rerouted = computed = 0
    changed = torch.zeros(T, K, dtype=torch.bool, device=topk_weights.device)
    for t in range(T):
        if t not in slots:
            inside = [k for k in range(K) if 0 <= ids[t][k] < E]
            for k in inside:
                ids[t][k], weights[t][k] = min(primary), 0.0
            changed[t, inside] = True
            _merge(ids[t], weights[t], [True] * K, inside, active, config, padding=True)
            continue
        squares = {k: weights[t][k] * weights[t][k] for k in slots[t]}
        energy = 0.0
        for square in squares.values():  # in the order of the slots; Python's own sum rounds otherwise
            energy += square
        stays = [True] * K
        for k in slots[t]:
            e = ids[t][k]
            p = target.get(e)
            if p is not None:
                ids[t][k] = p
                rerouted += 1
                if layer.substitutes is not None:
                    factor, similarity = layer.substitutes[e, p].tolist()
                    weights[t][k] *= factor
                    # Not at least: where a gain is not known, NaN, the slot stays.
                    stays[k] = not squares[k] * similarity < -least_gain / GAIN_UNITS * energy
        changed[t, slots[t]] = True
        _merge(ids[t], weights[t], stays, slots[t], active, config, padding=False)
        for k in slots[t]:
            if not stays[k]:
                weights[t][k] = 0.0
                if config.merge == MERGE_SENTINEL:
                    ids[t][k] = config.sentinel
        computed += sum(weights[t][k] != 0 for k in slots[t])

    if counters is not None:
        step = {
            "steps": 1,
            "rows": len(real),
            "distinct_before": len(occurring),
            "distinct_after": len(active),
            "slots": sum(map(len, slots.values())),
            "slots_rerouted": rerouted,
            "slots_computed": computed,
            "critical": len(critical),
        }
        counters += counters.new_tensor([step[name] for name in COUNTERS])
    new_weights = topk_weights.new_tensor(weights).reshape(T, K)
    # Slots that pass through keep their bits, whatever these are.
    new_weights = torch.where(changed, new_weights, topk_weights)
    return Routing(topk_ids.new_tensor(ids).reshape(T, K), new_weights)


def _counts(weight: float) -> bool:
    return weight != 0 and not math.isnan(weight)


def _experts(ids: list[Row], slots: dict[int, Row]) -> set[int]:
    """Return the experts in slots, which are given by row."""
    return {ids[t][k] for t, of_row in slots.items() for k in of_row}


def _heaviest(slots: Row, weights: list[float], budget: int) -> Row:
    return sorted(slots, key=lambda k: (-weights[k], k))[:budget]


def _masses(ids: list[Row], weights: list[list[float]], slots: dict[int, Row]) -> dict[int, int]:
    """Return each expert's sum of its slots' weights to the fourth power, in integers."""
    mass: dict[int, int] = {}
    for t, valid in slots.items():
        for k in valid:
            # A power beyond float64 is infinite, as in the other backends.
            square = weights[t][k] * weights[t][k]
            units = round(min(MASS_BOUND, square * square * MASS_UNITS))
            mass[ids[t][k]] = mass.get(ids[t][k], 0) + units
    return mass


def _order(chosen: set[int], fixed: set[int], heaviest: set[int], mass: dict[int, float]) -> Row:
    """Return the experts of rows that are not protected in the order in which they become primary."""
    return sorted(chosen, key=lambda e: (e not in fixed, e not in heaviest, -mass[e], e))


def _most_similar(e: int, candidates: set[int], layer: Layer) -> int | None:
    """Return the candidate most similar to ``e`` (ties: lower id), or None if all are below the threshold."""
    similarity: list[float] = layer.similarity[e].tolist()
    # A similarity that is not known, NaN, reaches no threshold.
    enough = [p for p in sorted(candidates) if similarity[p] >= float(layer.threshold)]
    return max(enough, key=lambda p: similarity[p], default=None)


def _merge(
    ids: Row,
    weights: list[float],
    stays: list[bool],
    slots: Row,
    active: set[int],
    config: KernelConfig,
    *,
    padding: bool,
) -> None:
    """Sum the weights of equal ids into the lowest slot and free the others, in place.

    What is summed stays if one of its slots would; a freed slot is settled.
    """
    if padding and config.merge == MERGE_SENTINEL:
        for k in slots:
            ids[k] = config.sentinel
        return
    if config.merge == MERGE_NONE:
        return
    first: dict[int, int] = {}
    freed = []
    for k in slots:
        if ids[k] in first:
            weights[first[ids[k]]] += weights[k]
            stays[first[ids[k]]] |= stays[k]
            weights[k], stays[k] = 0.0, True
            freed.append(k)
        else:
            first[ids[k]] = k
    taken = {ids[k] for k in range(len(ids)) if k not in freed}
    for k in freed:
        if config.merge == MERGE_SENTINEL:
            ids[k] = config.sentinel
        elif config.merge == MERGE_DISTINCT:
            fillers = sorted(active - taken)
            if fillers:
                ids[k] = fillers[0]
                taken.add(fillers[0])
