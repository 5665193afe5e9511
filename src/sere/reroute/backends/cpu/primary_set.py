# mypy: disable-error-code="no-untyped-def"
"""Step 3 of ``kernel.py``, the primary set: numba sees a change here only once that file changes."""

from __future__ import annotations

import numpy as np
from numba import njit

from sere.reroute import constants

MASS_UNITS, MASS_BOUND = float(constants.MASS_UNITS), float(constants.MASS_BOUND)
# An expert's class by the rows that are not protected: in none of their slots, in one, in a kept one, and
# in ``keep``.
NONE, CHOSEN, KEPT, FIXED = range(4)


@njit
def fill(ids, weights, row_budgets, classes, sensitivity, most, cap):
    """Step 3: make P the classes from KEPT on, of M experts where it can be; return its size."""
    fixed, kept = 0, 0
    for c in classes:
        fixed += c == FIXED
        kept += c == KEPT
    size = fixed + kept
    if size == most or (size > most and not (cap and kept > 0)):
        return size
    mass = _masses(ids, weights, row_budgets, sensitivity)
    if size < most:
        return size + _join(mass, classes, CHOSEN, KEPT, most - size)
    # Of the experts in kept slots only the heaviest stay.
    stay = _join(mass, classes, KEPT, FIXED, max(0, most - fixed))
    for e in range(classes.shape[0]):
        if classes[e] == KEPT:
            classes[e] = CHOSEN
    return fixed + stay


@njit
def _masses(ids, weights, row_budgets, sensitivity):
    """Return each expert's mass in rows that are not protected.

    It is the integer sum of its slots' weights to the fourth power, times its sensitivity.
    """
    (T, K), E = ids.shape, sensitivity.shape[0]
    mass = np.zeros(E, np.int64)
    for t in range(T):
        if not 0 <= row_budgets[t] < K:
            continue
        for k in range(K):
            e = ids[t, k]
            if 0 <= e < E and abs(weights[t, k]) > 0:
                square = np.float64(weights[t, k]) * np.float64(weights[t, k])
                mass[e] += np.int64(min(np.rint(square * square * MASS_UNITS), MASS_BOUND))
    return mass * sensitivity.astype(np.float64)


@njit
def _join(mass, classes, from_class, to_class, wanted):
    """Move the heaviest experts of a class to another (ties: the lower id); return how many moved."""
    (members,) = np.nonzero(classes == from_class)
    wanted = min(wanted, members.shape[0])
    if wanted == 0:
        return 0
    masses = mass[members]
    least = largest(masses, wanted)
    level = np.sum(masses[:wanted] == least)
    for e in members:
        if mass[e] > least or (mass[e] == least and level > 0):
            level -= mass[e] == least
            classes[e] = to_class
    return wanted


@njit
def largest(values, wanted):
    """Return the ``wanted``-th largest value and put the larger ones before it (Hoare's quickselect)."""
    low, at, high = 0, wanted - 1, values.shape[0] - 1
    while low < high:
        pivot = values[at]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if j < at:
            low = i
        if at < i:
            high = j
    return values[at]
