# mypy: disable-error-code="no-untyped-def"
"""The loops that the ``cpu`` backend compiles; plain Python to the eye, typed by numba at compilation."""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from sere.reroute import constants
from sere.reroute.backends.cpu.primary_set import CHOSEN, FIXED, KEPT, NONE, fill
from sere.reroute.constants import (
    LAYER_BUDGET,
    LIMIT_ROWS,
    LIMITS,
    MERGE_NONE,
    MERGE_SAME,
    MERGE_SENTINEL,
    PADDING_BUDGET,
)
from sere.reroute.stats import COUNTERS

# Bits of ``given``.
HAS_SUBSTITUTES, HAS_ROW_BUDGETS, HAS_COUNTERS = 1, 2, 4
GAIN_UNITS = float(constants.GAIN_UNITS)
NUM_COUNTERS = len(COUNTERS)


def reroute(
    ids_p, weights_p, new_ids_p, new_weights_p, order_p, counts_p, limits_p, keep_p, sensitivity_p,
    substitutes_p, budgets_p, counters_p,
    T, K, E, N, cap, active_targets, merge, sentinel, given,
):  # fmt: skip
    """Do docs/method.md section 4 for one layer and step; ``given`` has a bit for each optional pointer.

    Returns whether a NaN passed through, whose bits a conversion to another dtype would lose.
    """
    ids, weights = carray(ids_p, (T, K)), carray(weights_p, (T, K))
    new_ids, new_weights = carray(new_ids_p, (T, K)), carray(new_weights_p, (T, K))
    order, counts, keep = carray(order_p, (E, E)), carray(counts_p, (E,)), carray(keep_p, (E,))
    substitutes, counters = carray(substitutes_p, (E, E, 2)), carray(counters_p, (NUM_COUNTERS,))
    sensitivity = carray(sensitivity_p, (E,))
    given_budgets, limits = carray(budgets_p, (T,)), carray(limits_p, (LIMITS,))
    # An array over a null pointer is never read: these guard every use.
    has_substitutes, has_counters = given & HAS_SUBSTITUTES != 0, given & HAS_COUNTERS != 0
    has_budgets = given & HAS_ROW_BUDGETS != 0

    row_budgets = np.empty(T, np.int64)
    for t in range(T):
        budget = np.int64(given_budgets[t]) if has_budgets else LAYER_BUDGET
        if budget == LAYER_BUDGET:
            budget = np.int64(limits[0])
        row_budgets[t] = budget if t < N else PADDING_BUDGET
    classes, protected = np.zeros(E, np.uint8), np.zeros(E, np.bool_)
    rows, open_rows, slots = _vote(ids, weights, row_budgets, classes, protected)
    for e in range(E):
        if classes[e] != NONE and keep[e] != 0:
            classes[e] = FIXED
    most = limits[max(1, min(open_rows, LIMIT_ROWS))]
    size = fill(ids, weights, row_budgets, classes, sensitivity, most, cap)
    occurring, primary = classes != NONE, classes >= KEPT
    if open_rows < rows:
        occurring |= protected
        primary |= protected
        size = primary.sum()
    if size == 0:
        new_ids[:] = ids
        new_weights[:] = weights
        return np.isnan(weights).any()

    active, target, replaced = primary.copy(), np.arange(E), np.zeros(E, np.bool_)
    before, critical = _choose(order, counts, occurring, primary, active, target, replaced)
    if active_targets:
        for e in range(E):
            if replaced[e]:
                target[e] = _first_of(order[e], counts[e], active)
    lowest = 0
    while not primary[lowest]:
        lowest += 1

    rerouted, computed, some_nan = 0, 0, False
    in_merge, row_weights = np.empty(K, np.bool_), np.empty(K, np.float64)
    stays, min_gain = np.empty(K, np.bool_), -limits[LIMITS - 1] / GAIN_UNITS
    present = np.zeros(E, np.bool_)
    for t in range(T):
        padding = row_budgets[t] < 0
        stays[:] = True
        for k in range(K):
            e, w = ids[t, k], np.float64(weights[t, k])
            inside = 0 <= e < E
            in_merge[k] = inside and (padding or abs(w) > 0)
            some_nan |= w != w
            if in_merge[k]:
                if padding:
                    e, w = lowest, np.float64(0.0)
                elif replaced[e]:
                    p = target[e]
                    rerouted += 1
                    if has_substitutes:
                        w *= np.float64(substitutes[e, p, 0])
                    e = p
            new_ids[t, k] = e
            row_weights[k] = w
        if min_gain > 0 and has_substitutes and not padding:
            _judge(ids[t], weights[t], in_merge, replaced, target, substitutes, min_gain, stays)
        if merge != MERGE_NONE:
            _merge(new_ids[t], row_weights, stays, in_merge, padding, active, present, merge, sentinel)
        for k in range(K):
            if not in_merge[k]:
                new_weights[t, k] = weights[t, k]
                continue
            new_weights[t, k] = row_weights[k] if stays[k] else 0.0
            computed += stays[k] and row_weights[k] != 0
            if not stays[k] and merge == MERGE_SENTINEL:
                new_ids[t, k] = sentinel

    if has_counters:
        step = (1, rows, before, size + critical, slots, rerouted, computed, critical)
        for i in range(NUM_COUNTERS):
            counters[i] += step[i]
    return some_nan


@njit(inline="always")
def _vote(ids, weights, row_budgets, classes, protected):
    """Steps 1, 2: mark experts of protected rows, give the others' their class, but for ``keep``; count.

    Returns how many rows are real, how many of them are not protected, and how many slots count.
    """
    (T, K), E = ids.shape, classes.shape[0]
    rows, open_rows, slots = 0, 0, 0
    valid = np.empty(K, np.bool_)
    for t in range(T):
        b = row_budgets[t]
        if b < 0:
            continue
        rows += 1
        left = 0
        for k in range(K):
            e = ids[t, k]
            valid[k] = 0 <= e < E and abs(weights[t, k]) > 0
            if valid[k]:
                left += 1
                if b >= K:
                    protected[e] = True
                else:
                    classes[e] = max(classes[e], CHOSEN)
        slots += left
        if b >= K:
            continue
        open_rows += 1
        for _ in range(min(b, left)):
            best = -1
            for k in range(K):
                if valid[k] and (best < 0 or weights[t, k] > weights[t, best]):
                    best = k
            valid[best] = False
            classes[ids[t, best]] = KEPT
    return rows, open_rows, slots


@njit(inline="always")
def _first_of(neighbors, count, candidates):
    """Return the most similar candidate, or -1 where all are below the threshold."""
    for i in range(count):
        p = neighbors[i]
        if candidates[p]:
            return p
    return -1


@njit(inline="always")
def _choose(order, counts, occurring, primary, active, target, replaced):
    """Step 4: find each secondary expert's primary one; those without become critical and active."""
    before, critical = 0, 0
    for e in range(primary.shape[0]):
        if not occurring[e]:
            continue
        before += 1
        if primary[e]:
            continue
        p = _first_of(order[e], counts[e], primary)
        if p >= 0:
            target[e] = p
            replaced[e] = True
        else:
            active[e] = True
            critical += 1
    return before, critical


@njit
def _judge(ids, weights, valid, replaced, target, substitutes, min_gain, stays):
    """Step 9 for one row: say which of its re-routed slots stay."""
    energy = 0.0
    for k in range(ids.shape[0]):
        if valid[k]:
            energy += np.float64(weights[k]) * np.float64(weights[k])
    for k in range(ids.shape[0]):
        if valid[k] and replaced[ids[k]]:
            w, similarity = np.float64(weights[k]), np.float64(substitutes[ids[k], target[ids[k]], 1])
            # Not at least: where a gain is not known, NaN, the slot stays.
            stays[k] = not w * w * similarity < min_gain * energy


@njit
def _merge(ids, weights, stays, in_merge, padding, active, present, merge, sentinel):
    """Step 7 for one row, in place; ``present`` is scratch, all False before and after."""
    K, E = ids.shape[0], active.shape[0]
    if padding and merge == MERGE_SENTINEL:
        for k in range(K):
            if in_merge[k]:
                ids[k] = sentinel
        return
    freed = np.zeros(K, np.bool_)
    some = False
    for k in range(1, K):
        if not in_merge[k]:
            continue
        for j in range(k):
            if in_merge[j] and not freed[j] and ids[j] == ids[k]:
                weights[j] += weights[k]
                stays[j] |= stays[k]
                weights[k], stays[k] = 0.0, True
                freed[k] = some = True
                break
    if not some or merge == MERGE_SAME:
        return
    if merge == MERGE_SENTINEL:
        for k in range(K):
            if freed[k]:
                ids[k] = sentinel
        return
    # MERGE_DISTINCT: freed slots get the lowest active experts that the row does not have.
    for k in range(K):
        if not freed[k] and 0 <= ids[k] < E:
            present[ids[k]] = True
    filler = 0
    for k in range(K):
        if not freed[k]:
            continue
        while filler < E and (present[filler] or not active[filler]):
            filler += 1
        if filler < E:
            ids[k] = filler
            present[filler] = True
    for k in range(K):
        if 0 <= ids[k] < E:
            present[ids[k]] = False
