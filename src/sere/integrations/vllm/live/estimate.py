"""How much faster decoding could be: by predicted times where ceilings are known, else by bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from sere.step_time import Ceilings, StepWeights, step_seconds

CAVEAT = (
    "An estimate, not a measurement: how many times fewer bytes of weights a re-routed step reads. Decoding "
    "is faster by that much only where reading weights takes all of the time. The KV cache, arithmetic, "
    "communication and the host are not part of it, and steps that were left alone gain nothing."
)
CAVEAT_OF_TIMES = (
    "An estimate, not a measurement: predicted times of a step, off and re-routed, from its bytes of "
    "weights, its arithmetic, and what sere doctor measured of this machine. The KV cache, attention, "
    "communication and the host are not part of it, and steps that were left alone gain nothing."
)


def estimate(
    layers: Iterable[tuple[float, float]],
    joined: Mapping[str, Any],
    means: Mapping[str, float | None],
    ceilings: Ceilings | None,
) -> dict[str, Any]:
    """Return how much faster a re-routed step is estimated to be, JSON-ready.

    Args:
        layers: For each layer, the mean distinct experts of a step before and after re-routing.
        joined: What `join_answers` returned: the sizes of the weights, and K.
        means: Over layers and steps: ``rows``, and ``computed``, the share of the slots.
        ceilings: Those of the engine's machine; None if they are not known.

    Returns:
        ``speedup``, None where sizes are not known; ``basis``, ``"times"`` or ``"bytes"``; and ``caveat``.
    """
    layers = list(layers)
    expert_bytes, rest_bytes, rows = joined["expert_bytes"], joined["rest_bytes"], means["rows"]
    fewer = speedup(layers, expert_bytes, rest_bytes)
    if ceilings is None or fewer is None or not rows:
        return {"speedup": _rounded(fewer), "basis": "bytes", "caveat": CAVEAT}
    size = getattr(torch, ceilings.dtype).itemsize
    weights = StepWeights(rest_bytes, expert_bytes, len(layers), rest_bytes // size, expert_bytes / size)
    slots, computed = rows * joined["top_k"], means["computed"]
    before, after = (sum(side) / len(layers) for side in zip(*layers, strict=True))
    off, on = (
        step_seconds(weights, ceilings, rows=round(rows), experts=experts, pairs=pairs)
        for experts, pairs in ((before, slots), (after, slots * (1.0 if computed is None else computed)))
    )
    return {"speedup": _rounded(off / on), "basis": "times", "caveat": CAVEAT_OF_TIMES}


def speedup(
    layers: Iterable[tuple[float, float]], expert_bytes: int | None, rest_bytes: int | None
) -> float | None:
    """Return how many times fewer bytes of weights a step reads, or None where sizes are not known.

    Args:
        layers: For each layer, the mean distinct experts of a step before and after re-routing.
        expert_bytes: Of one routed expert in one worker.
        rest_bytes: Of all other weights that a step of one worker reads.
    """
    sums = [sum(side) for side in zip(*layers, strict=True)]
    if not expert_bytes or rest_bytes is None or not sums:
        return None
    before, after = (rest_bytes + expert_bytes * experts for experts in sums)
    return before / after if after else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
