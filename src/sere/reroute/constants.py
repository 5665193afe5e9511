"""The numbers that all backends share; the CUDA source has the same ones, and a test compares them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# docs/method.md section 4, step 7. Plain integers: compilers of Python take them as constants.
MERGE_NONE, MERGE_SAME, MERGE_DISTINCT, MERGE_SENTINEL = range(4)
MERGE_MODES: Mapping[str, int] = MappingProxyType(
    {"none": MERGE_NONE, "same": MERGE_SAME, "distinct": MERGE_DISTINCT, "sentinel": MERGE_SENTINEL}
)

# The budget of a padding row; any other negative number means the same.
PADDING_BUDGET = -1

# A mass is a sum of weights in units of 2⁻²⁴. Each is clamped: 2³¹ slots of 2³² units do not reach 2⁶³.
MASS_UNITS, MASS_BOUND, MOST_SLOTS = 2**24, 2**32, 2**31
