"""What a layer's counters add up, and the means computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# What each entry of a counters tensor adds up, over the calls in which an expert is primary.
COUNTERS = (
    "steps",
    "rows",
    "distinct_before",
    "distinct_after",
    "slots",
    "slots_rerouted",
    "slots_computed",
    "critical",
)


@dataclass(frozen=True, slots=True)
class LayerStats:
    """What re-routing did in one layer since it was set up or the statistics were reset.

    Attributes:
        index: Decoder-layer index.
        name: Module name of the experts.
        steps: Runs of the layer with at least one real row, whether a slot changed or not. A model that loops
            over its layers runs one several times per decode step.
        rows: Real rows, mean per run.
        distinct_before: Distinct experts that the router chose, mean per run.
        distinct_after: Distinct experts that ran, mean per run.
        slots_rerouted: Share of the real rows' slots whose expert changed, 0 to 1.
        slots_computed: Share of these slots that carried weight afterwards: neither merged into another one
            nor given up for too small a gain.
        critical: Experts that resembled no primary one and stayed, mean per run.
    """

    index: int
    name: str
    steps: int
    rows: float
    distinct_before: float
    distinct_after: float
    slots_rerouted: float
    slots_computed: float
    critical: float


def read_counters(counters: Sequence[Tensor]) -> list[list[int]]:
    """Return the counters of layers as numbers; the host waits once per device, not once per layer.

    Args:
        counters: Of each layer, ``[len(COUNTERS)]``, int64.
    """
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(counters):
        by_device.setdefault(tensor.device, []).append(index)
    found: dict[int, list[int]] = {}
    for indices in by_device.values():
        sums: list[list[int]] = torch.stack([counters[index] for index in indices]).tolist()
        found |= zip(indices, sums, strict=True)
    return [found[index] for index in range(len(counters))]


def layer_stats(index: int, name: str, counters: Sequence[int]) -> LayerStats:
    """Turn a layer's counters into means.

    Args:
        index: Decoder-layer index.
        name: Module name of the experts.
        counters: One sum per name in ``COUNTERS``.
    """
    sums = dict(zip(COUNTERS, counters, strict=True))
    steps, slots = max(1, sums["steps"]), max(1, sums["slots"])
    return LayerStats(
        index=index,
        name=name,
        steps=sums["steps"],
        rows=sums["rows"] / steps,
        distinct_before=sums["distinct_before"] / steps,
        distinct_after=sums["distinct_after"] / steps,
        slots_rerouted=sums["slots_rerouted"] / slots,
        slots_computed=sums["slots_computed"] / slots,
        critical=sums["critical"] / steps,
    )
