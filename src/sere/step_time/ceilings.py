"""What a machine can do at most: how fast it reads weights, and how fast it computes with them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Two ceilings of a machine.

    Attributes:
        bytes_per_s: Bytes of weights that are read from memory in a second.
        flops_per_s: Floating point operations of an expert kernel in a second, its weights in the caches.
        overlaps: Whether reading and computing go on at the same time, as on a GPU.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: Of the weights, such as ``"bfloat16"``.
        threads: Of a CPU.
    """

    bytes_per_s: float
    flops_per_s: float
    overlaps: bool = False
    device: str = "cpu"
    dtype: str = "bfloat16"
    threads: int = 1
