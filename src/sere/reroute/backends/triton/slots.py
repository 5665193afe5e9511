# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""How a Triton program reads rows of slots, and what their weights mean as numbers."""

from __future__ import annotations

import triton
from triton import language as tl

from sere.reroute import constants

LAYER_BUDGET = tl.constexpr(constants.LAYER_BUDGET)
PADDING_BUDGET = tl.constexpr(constants.PADDING_BUDGET)
# Bits of ``given``: what is there, and which integers have 64 bits.
HAS_BUDGETS, WIDE_BUDGETS = tl.constexpr(1), tl.constexpr(2)
HAS_NUM_TOKENS, WIDE_NUM_TOKENS = tl.constexpr(4), tl.constexpr(8)
HAS_COUNTERS = tl.constexpr(16)
# The dtype of the weights, which come as integers of its size.
FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def real_rows(num_tokens_p, T, N, given):
    """Return how many rows are not padding by their number, 0 to T."""
    number = N.to(tl.int64)
    if given & HAS_NUM_TOKENS != 0:
        if given & WIDE_NUM_TOKENS != 0:
            number = tl.load(num_tokens_p.to(tl.pointer_type(tl.int64)))
        else:
            number = tl.load(num_tokens_p).to(tl.int64)
    return tl.minimum(tl.maximum(number, 0), T.to(tl.int64))


@triton.jit
def row_budgets(budgets_p, limits_p, rows, T, N, given, K: tl.constexpr):
    """Return each row's budget, ``[R]``: 0 to K, or ``PADDING_BUDGET``, also for rows from T on."""
    there = rows < T
    asked = tl.where(there, LAYER_BUDGET, PADDING_BUDGET).to(tl.int64)
    if given & HAS_BUDGETS != 0:
        if given & WIDE_BUDGETS != 0:
            wide_p = budgets_p.to(tl.pointer_type(tl.int64))
            asked = tl.load(wide_p + rows, mask=there, other=PADDING_BUDGET)
        else:
            asked = tl.load(budgets_p + rows, mask=there, other=PADDING_BUDGET).to(tl.int64)
    asked = tl.where(asked == LAYER_BUDGET, tl.load(limits_p).to(tl.int64), asked)
    padding = (rows.to(tl.int64) >= N) | (asked < 0)
    return tl.where(padding, PADDING_BUDGET, tl.minimum(asked, K)).to(tl.int32)


@triton.jit
def value_of(bits, KIND: tl.constexpr):
    """Return the weights that integers are the bits of, float64 for float64 and float32 for the others."""
    if KIND == FLOAT64:
        return bits.to(tl.float64, bitcast=True)
    elif KIND == FLOAT32:  # noqa: RET505 -- the compiler takes one branch alone
        return bits.to(tl.float32, bitcast=True)
    elif KIND == FLOAT16:
        return bits.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def bits_of(weights, KIND: tl.constexpr):
    """Return the bits of float64 weights rounded to their dtype: to float32 first, as PyTorch does."""
    if KIND == FLOAT64:
        return weights.to(tl.int64, bitcast=True)
    elif KIND == FLOAT32:  # noqa: RET505
        return weights.to(tl.float32).to(tl.int32, bitcast=True)
    elif KIND == FLOAT16:
        return weights.to(tl.float32).to(tl.float16).to(tl.int16, bitcast=True)
    else:
        bits = weights.to(tl.float32).to(tl.int32, bitcast=True)
        # To nearest, ties to even; a NaN stays one.
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.int16)


@triton.jit
def load_slots(ids_p, weights_p, rows, T, K: tl.constexpr, KP: tl.constexpr):
    """Return where rows' slots are in ``[T, K]``, which are there, ids and the weights' bits, ``[R, KP]``."""
    slots = tl.arange(0, KP)
    at = rows[:, None] * K + slots[None, :]
    there = (rows < T)[:, None] & (slots < K)[None, :]
    ids = tl.load(ids_p + at, mask=there, other=-1)
    bits = tl.load(weights_p + at, mask=there, other=0)
    return at, there, ids, bits


@triton.jit
def column(values, j, KP: tl.constexpr):
    """Return slot ``j`` of each row, ``[R]``, of float64 values: bit for bit, for a sum would lose signs."""
    bits = values.to(tl.int64, bitcast=True)
    mine = tl.sum(tl.where(tl.arange(0, KP)[None, :] == j, bits, 0), axis=1)
    return mine.to(tl.float64, bitcast=True)
