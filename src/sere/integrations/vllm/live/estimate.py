"""How much faster decoding could be: from the bytes of weights that a step reads."""

from __future__ import annotations

from collections.abc import Iterable

CAVEAT = (
    "An estimate, not a measurement: how many times fewer bytes of weights a re-routed step reads. Decoding "
    "is faster by that much only where reading weights takes all of the time. The KV cache, arithmetic, "
    "communication and the host are not part of it, and steps that were left alone gain nothing."
)


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
