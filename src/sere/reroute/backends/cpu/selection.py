# mypy: disable-error-code="no-untyped-def"
"""Selection by size, for the loops of ``kernel.py``: numba sees a change here only once that file changes."""

from __future__ import annotations

from numba import njit


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
