"""One launch, as numbers: which entry of the source, how many threads, and its arguments."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sere.reroute.backends.cuda.layer import GROUP, WARP, Layer
from sere.reroute.batch import Routing, StepDtypes, TokenBatch

SOURCE = Path(__file__).with_name("reroute.cu")
# The slots of a step are numbered in 32 bits.
MOST_EXPERTS, MOST_SLOTS_PER_ROW, MOST_ROWS = 1024, 32, 2**26 - 1
MOST_BLOCKS, LEAST_THREADS, MOST_THREADS = 32, 64, 1024

# Bits of ``given``, as in call.cuh.
ACTIVE_TARGETS, WIDE_BUDGETS, WIDE_NUM_TOKENS, CAP = 1, 2, 4, 8

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
        kernel_args: The arguments, 64 bits each; the caller keeps alive what the addresses among them point
            to.
    """

    entry: str
    blocks: int
    threads: int
    kernel_args: tuple[int, ...]


def too_large(T: int, K: int, E: int) -> str | None:
    """Return why the kernel does not take this shape, or None if it does."""
    if E > MOST_EXPERTS:
        return f"the kernel takes at most {MOST_EXPERTS} experts per layer, this one has {E}"
    if K > MOST_SLOTS_PER_ROW:
        return f"the kernel takes at most {MOST_SLOTS_PER_ROW} slots per row, these rows have {K}"
    if T > MOST_ROWS:
        return f"the kernel takes at most {MOST_ROWS} rows, this batch has {T}"
    return None


def geometry(T: int, K: int, E: int) -> tuple[int, int]:
    """Return blocks and threads: a lane for each slot and a warp for eight experts, within a block's limit.

    Each expert has its own thread, and so has each limit that T rows can need. Every block looks at all rows,
    so more of them only share the writing.
    """
    lanes = T << _lane_bits(K)
    threads = LEAST_THREADS
    while threads < MOST_THREADS and threads < max(lanes, WARP * E // GROUP):
        threads *= 2
    return max(1, min(MOST_BLOCKS, lanes // MOST_THREADS)), threads


# What depends on shapes and dtypes alone: a decode step has the same ones over and over.
@lru_cache(maxsize=4096)
def _shaped(T: int, K: int, E: int, ids: torch.dtype, weights: torch.dtype) -> tuple[str, int, int, int]:
    return entry_of(ids, weights), *geometry(T, K, E), _lane_bits(K)


def make_launch(batch: TokenBatch, layer: Layer, result: Routing, counters: Tensor | None) -> Launch:
    """Return the launch that fills ``result``.

    Args:
        batch: The step, checked; all tensors contiguous and on one device, ``num_tokens`` too if it is one.
        layer: The layer, prepared on the same device.
        result: What the kernel fills, ``[T, K]``, dtypes as in the batch.
        counters: int64, one entry per name in ``COUNTERS``, or None.
    """
    ids, weights, row_budgets, num_tokens, _ = batch
    lists, limits, keep, sensitivity, substitutes, config = layer
    T, K = ids.shape
    E = keep.shape[0]
    entry, blocks, threads, lane_bits = _shaped(T, K, E, ids.dtype, weights.dtype)
    N, num_tokens_address = T, 0
    given = (ACTIVE_TARGETS if config.active_targets else 0) | (CAP if config.cap else 0)
    if row_budgets is not None and row_budgets.dtype is torch.int64:
        given |= WIDE_BUDGETS
    if isinstance(num_tokens, Tensor):
        num_tokens_address = num_tokens.data_ptr()
        given |= WIDE_NUM_TOKENS if num_tokens.dtype is torch.int64 else 0
    elif num_tokens is not None:
        N = num_tokens
    kernel_args = (
        ids.data_ptr(), weights.data_ptr(), result.ids.data_ptr(), result.weights.data_ptr(),
        lists.data_ptr(), limits.data_ptr(), keep.data_ptr(),
        sensitivity.data_ptr(), 0 if substitutes is None else substitutes.data_ptr(),
        0 if row_budgets is None else row_budgets.data_ptr(), num_tokens_address,
        0 if counters is None else counters.data_ptr(),
        T, K, E, max(0, min(T, N)), config.merge, given, lane_bits, config.sentinel,
    )  # fmt: skip
    return Launch(entry, blocks, threads, kernel_args)


def _lane_bits(K: int) -> int:
    # Eight lanes at least: the kernel asks eight slots of a row at once.
    return max(3, (K - 1).bit_length())


def entry_of(ids: torch.dtype, weights: torch.dtype) -> str:
    """Return the name of the entry for an id and a weight type."""
    return f"reroute_{IDS[ids]}_{WEIGHTS[weights]}"


# All entries of the source by name, and the steps that each one runs.
_ENTRIES = {entry_of(ids, weights): StepDtypes(ids, weights) for ids in IDS for weights in WEIGHTS}


def entries() -> tuple[str, ...]:
    """Return the names of all entries of the source."""
    return tuple(_ENTRIES)


def dtypes_of(entry: str) -> StepDtypes:
    """Return what steps an entry runs; the other way round as `entry_of`."""
    return _ENTRIES[entry]
