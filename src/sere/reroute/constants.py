"""The numbers that all backends share; the CUDA source has the same ones, and a test compares them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# docs/method.md section 4, step 7. Plain integers: compilers of Python take them as constants.
MERGE_NONE, MERGE_SAME, MERGE_DISTINCT, MERGE_SENTINEL = range(4)
MERGE_MODES: Mapping[str, int] = MappingProxyType(
    {"none": MERGE_NONE, "same": MERGE_SAME, "distinct": MERGE_DISTINCT, "sentinel": MERGE_SENTINEL}
)

# The budget of a row that has the layer's own S, and that of a padding row. Other negative ones are padding.
LAYER_BUDGET, PADDING_BUDGET = -2, -1

# A mass is a sum of weights to the fourth power in units of 2⁻³⁴. Each is clamped: 2²⁵ slots of 2³⁸ units
# make 2⁶³.
MASS_UNITS, MASS_BOUND, MOST_SLOTS = 2**34, 2**38, 2**25

# A layer's limits, in int32: S, then M for a step of 1, 2, ... rows (more rows have the last one), then the
# least gain, -τ in units of 2⁻³⁰. So of several limits the largest are the most careful.
LIMIT_ROWS = 256
LIMITS, GAIN_UNITS = LIMIT_ROWS + 2, 2**30
