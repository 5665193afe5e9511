# mypy: disable-error-code="no-untyped-def"
"""The loop that finds pairs; plain Python to the eye, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import carray


def merge_slots(ids_p, weights_p, new_ids_p, new_weights_p, rows_p, T, K, empty_id, compact):
    """Sum the weights of each row's slots with the same expert into its first one; leave out weights of 0.

    With ``compact``, the slots that stay are written one after the other, and their rows to ``rows_p``.
    Otherwise each stays where it is, and the others get ``empty_id`` and weight 0. Returns how many stay.
    """
    ids, weights = carray(ids_p, (T, K)), carray(weights_p, (T, K))
    new_ids, new_weights = carray(new_ids_p, (T * K,)), carray(new_weights_p, (T * K,))
    # Of a null pointer without ``compact``, and never written to then.
    rows = carray(rows_p, (T * K,))
    index = np.empty(K, np.int64)
    stay = 0
    for t in range(T):
        for k in range(K):
            index[k] = -1
            first = -1
            # NaN is not 0, so that it stays.
            if weights[t, k] != 0:
                for j in range(k):
                    if index[j] >= 0 and ids[t, j] == ids[t, k]:
                        first = index[j]
                        break
                if first < 0:
                    index[k] = stay if compact else t * K + k
                    new_ids[index[k]] = ids[t, k]
                    new_weights[index[k]] = weights[t, k]
                    if compact:
                        rows[stay] = t
                    stay += 1
                    continue
                new_weights[first] += weights[t, k]
            if not compact:
                new_ids[t * K + k] = empty_id
                new_weights[t * K + k] = 0
    return stay
