"""The time of a decode step from bytes, arithmetic and two ceilings."""

from __future__ import annotations

from sere.step_time.ceilings import Ceilings
from sere.step_time.weights import StepWeights

# How CPUs compute with few rows: fitted to the records of docs/measurements.md, "Predicted times".
OVERLAP = 3.0
"""How far an expert kernel reads while it computes: 1 is not at all, more is nearer the longer of the two."""
LEAST_ROWS = 16
"""Weights that are not routed experts' take as long to compute with fewer rows as with so many."""
BLOCK = 8
"""Rows that an expert kernel computes at once."""
PER_BLOCK = 0.2
"""Share of a full block's time that does not depend on its rows: weights are loaded and converted."""


def step_seconds(
    weights: StepWeights, ceilings: Ceilings, *, rows: int, experts: float, pairs: float
) -> float:
    """Return the predicted time of a decode step, in seconds.

    On a GPU, the longer of the time to read and the time to compute counts. On a CPU, the two times of the
    weights that are not routed experts' add up, with at least `LEAST_ROWS` rows to compute. Those of the
    experts overlap, as processors fetch the next weights while they compute: their time is
    ``(read^p + compute^p)^(1/p)``, p = `OVERLAP`. An expert computes its rows in blocks of `BLOCK`, and each
    block costs `PER_BLOCK` of a full one however few its rows are. The cache of keys and values, attention,
    communication and the host are left out.

    Args:
        weights: The model's.
        ceilings: The machine's.
        rows: Rows of the step.
        experts: Distinct experts of a layer, as a mean over the layers.
        pairs: Pairs of a row and an expert that a layer computes, as a mean over the layers.
    """
    rest_read = weights.read(0) / ceilings.bytes_per_s
    read = weights.read(experts) / ceilings.bytes_per_s - rest_read
    if ceilings.overlaps:
        return max(rest_read + read, weights.compute(rows, pairs) / ceilings.flops_per_s)
    rest_compute = weights.compute(max(rows, LEAST_ROWS), 0) / ceilings.flops_per_s
    computed = (1 - PER_BLOCK) * pairs + PER_BLOCK * BLOCK * _blocks(experts, pairs)
    compute = weights.compute(0, computed) / ceilings.flops_per_s
    own: float = (read**OVERLAP + compute**OVERLAP) ** (1 / OVERLAP)
    return rest_read + rest_compute + own


def _blocks(experts: float, pairs: float) -> float:
    """Return how many blocks of rows a layer computes: the last one of an expert is half full on average."""
    return max(experts, pairs / BLOCK + experts / 2) if experts else 0.0
