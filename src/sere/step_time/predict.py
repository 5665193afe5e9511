"""The time of a decode step from bytes, arithmetic and two ceilings."""

from __future__ import annotations

from sere.step_time.ceilings import Ceilings
from sere.step_time.weights import StepWeights

OVERLAP = 3.0
"""How far an expert kernel of a CPU reads while it computes: 1 is not at all, more is nearer to the longer of
the two times. Fitted to the records of docs/measurements.md, "Predicted times"."""


def step_seconds(
    weights: StepWeights, ceilings: Ceilings, *, rows: int, experts: float, pairs: float
) -> float:
    """Return the predicted time of a decode step, in seconds.

    On a GPU, the longer of the time to read and the time to compute counts. On a CPU, the two times of the
    weights that are not routed experts' add up. Those of the experts overlap: processors fetch the next
    weights while they compute, but an expert with few rows has less to compute than to read, and one with
    many rows the reverse. So the time of the experts is ``(read^p + compute^p)^(1/p)``, p = `OVERLAP`. The
    cache of keys and values, attention, communication and the host are left out.

    Args:
        weights: The model's.
        ceilings: The machine's.
        rows: Rows of the step.
        experts: Distinct experts of a layer, as a mean over the layers.
        pairs: Pairs of a row and an expert that a layer computes, as a mean over the layers.
    """
    read = weights.read(experts) / ceilings.bytes_per_s
    compute = weights.compute(rows, pairs) / ceilings.flops_per_s
    if ceilings.overlaps:
        return max(read, compute)
    rest_read = weights.read(0) / ceilings.bytes_per_s
    rest_compute = weights.compute(rows, 0) / ceilings.flops_per_s
    own = ((read - rest_read) ** OVERLAP + (compute - rest_compute) ** OVERLAP) ** (1 / OVERLAP)
    return rest_read + rest_compute + own
