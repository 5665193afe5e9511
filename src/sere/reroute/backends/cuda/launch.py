"""One launch, as numbers: which entry of the source, how many threads, and its arguments."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sere.reroute.types import Neighbors, Rules

SOURCE = Path(__file__).with_name("reroute.cu")
# Slots are numbered in 32 bits.
MOST_EXPERTS, MOST_SLOTS, MOST_ROWS = 1024, 32, 2**26 - 1

# Bits of ``given``, as in call.cuh.
ACTIVE_TARGETS, WIDE_BUDGETS, WIDE_NUM_TOKENS = 1, 2, 4

IDS = {torch.int32: "int32", torch.int64: "int64"}
WEIGHTS = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float64: "float64",
}


class Launch(NamedTuple):
    """What a launch needs; it neither allocates nor waits.

    Attributes:
        entry: Name of the entry.
        blocks: How many blocks.
        threads: How many threads each block has, a multiple of 32.
        words: The arguments, 64 bits each; the caller keeps alive what the addresses among them point to.
    """

    entry: str
    blocks: int
    threads: int
    words: tuple[int, ...]


def too_large(T: int, K: int, E: int) -> str | None:
    """Return why the kernel does not take this shape, or None if it does."""
    if E > MOST_EXPERTS:
        return f"the kernel takes at most {MOST_EXPERTS} experts a layer, these are {E}"
    if K > MOST_SLOTS:
        return f"the kernel takes at most {MOST_SLOTS} slots a row, these are {K}"
    if T > MOST_ROWS:
        return f"the kernel takes at most {MOST_ROWS} rows, these are {T}"
    return None


def geometry(T: int, K: int, E: int) -> tuple[int, int]:
    """Return blocks and threads: a lane for each slot and a warp for eight experts, within a block's limit.

    Each expert has its own thread. Every block looks at all rows, so more of them only share the writing.
    """
    lanes = T << _lane_bits(K)
    threads = 64
    while threads < 1024 and threads < max(lanes, 4 * E):
        threads *= 2
    return max(1, min(32, lanes // 1024)), threads


# What depends on shapes and dtypes alone: a decode step has the same ones over and over.
@lru_cache(maxsize=4096)
def _shaped(T: int, K: int, E: int, ids: torch.dtype, weights: torch.dtype) -> tuple[str, int, int, int]:
    return f"reroute_{IDS[ids]}_{WEIGHTS[weights]}", *geometry(T, K, E), _lane_bits(K)


def prepare(
    ids: Tensor,
    weights: Tensor,
    new_ids: Tensor,
    new_weights: Tensor,
    neighbors: Neighbors,
    rules: Rules,
    row_budgets: Tensor | None,
    num_tokens: Tensor | int | None,
    counters: Tensor | None,
) -> Launch:
    """Return the launch that fills ``new_ids`` and ``new_weights``.

    Args:
        ids: ``[T, K]``, int32 or int64, contiguous, like the other tensors.
        weights: ``[T, K]``, floating point.
        new_ids: ``[T, K]``, like ``ids``: what the kernel fills.
        new_weights: ``[T, K]``, like ``weights``.
        neighbors: The layer, prepared on the same device.
        rules: The settings.
        row_budgets: ``[T]``, int32 or int64, or None.
        num_tokens: One int32 or int64 on the same device, a number, or None for T.
        counters: int64, one entry per name in ``COUNTERS``, or None.
    """
    T, K = ids.shape
    E = neighbors.keep.shape[0]
    entry, blocks, threads, lane_bits = _shaped(T, K, E, ids.dtype, weights.dtype)
    N, there = T, 0
    given = ACTIVE_TARGETS if rules.active_targets else 0
    if row_budgets is not None and row_budgets.dtype is torch.int64:
        given |= WIDE_BUDGETS
    if isinstance(num_tokens, Tensor):
        there = num_tokens.data_ptr()
        given |= WIDE_NUM_TOKENS if num_tokens.dtype is torch.int64 else 0
    elif num_tokens is not None:
        N = num_tokens
    scale = neighbors.scale
    words = (
        ids.data_ptr(), weights.data_ptr(), new_ids.data_ptr(), new_weights.data_ptr(),
        neighbors.lists.data_ptr(), neighbors.keep.data_ptr(),
        0 if scale is None else scale.data_ptr(), 0 if row_budgets is None else row_budgets.data_ptr(),
        there, 0 if counters is None else counters.data_ptr(),
        T, K, E, max(0, min(T, N)), min(rules.select_top_k, K), min(rules.min_active, E), rules.merge, given,
        lane_bits, rules.sentinel,
    )  # fmt: skip
    return Launch(entry, blocks, threads, words)


def _lane_bits(K: int) -> int:
    # Eight lanes at least: the kernel asks eight slots of a row at once.
    return max(3, (K - 1).bit_length())


def entries() -> tuple[str, ...]:
    """Return the names of all entries of the source."""
    return tuple(f"reroute_{ids}_{weights}" for ids in IDS.values() for weights in WEIGHTS.values())
