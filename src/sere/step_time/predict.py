"""The time of a decode step from bytes, arithmetic and two ceilings."""

from __future__ import annotations

from sere.step_time.ceilings import Ceilings
from sere.step_time.weights import StepWeights


def step_seconds(
    weights: StepWeights, ceilings: Ceilings, *, rows: int, experts: float, pairs: float
) -> float:
    """Return the predicted time of a decode step, in seconds.

    On a CPU, the time to read and the time to compute add up. On a GPU, the longer of the two counts. The
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
    return max(read, compute) if ceilings.overlaps else read + compute
