"""The pairs of a row and an expert that carry weight, and the sum of what is computed for them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sere.errors import how_to_install, why_missing

_WIDE = (torch.float32, torch.float64)


class Pairs(NamedTuple):
    """Each row's distinct experts whose weight is not 0, as rows with one slot each.

    Attributes:
        rows: ``[n]``, int64, ascending: the row of each pair.
        ids: ``[n, 1]``: its expert; within a row in the order of the slots.
        weights: ``[n, 1]``: the sum of the weights of the row's slots with this expert.
    """

    rows: Tensor
    ids: Tensor
    weights: Tensor


def why_not() -> str | None:
    """Return why no pairs can be found here, or None if they can."""
    return why_missing("numba", how_to_install("cpu"))


def find_pairs(topk_ids: Tensor, topk_weights: Tensor) -> Pairs:
    """Return the pairs that carry weight.

    Weights are summed in float32 (float64 ones in float64) and rounded to their dtype once.

    Args:
        topk_ids: ``[T, K]``, int32 or int64, on the CPU.
        topk_weights: ``[T, K]``, floating point; NaN is a weight that is not 0.
    """
    T, K = topk_ids.shape
    ids, weights = _inputs(topk_ids, topk_weights)
    new_ids, new_weights = torch.empty_like(ids), torch.empty_like(weights)
    rows = torch.empty(T * K, dtype=torch.int64)
    pointers = [tensor.data_ptr() for tensor in (ids, weights, new_ids, new_weights, rows)]
    n = _compiled(ids.dtype, weights.dtype)(*pointers, T, K, 0, True)
    found = new_weights.view(-1, 1)[:n]
    return Pairs(rows[:n], new_ids.view(-1, 1)[:n], found.to(topk_weights.dtype))


def skip_empty_slots(topk_ids: Tensor, topk_weights: Tensor, empty_id: int) -> tuple[Tensor, Tensor, int]:
    """Return the same slots for experts that skip an id: all but the pairs that carry weight have it.

    Args:
        topk_ids: ``[T, K]``, int32 or int64, on the CPU.
        topk_weights: ``[T, K]``, floating point.
        empty_id: The id that is skipped.

    Returns:
        New ids and weights, and how many slots keep a weight; weights are summed as in `find_pairs`.
    """
    ids, weights = _inputs(topk_ids, topk_weights)
    new_ids, new_weights = torch.empty_like(ids), torch.empty_like(weights)
    pointers = [tensor.data_ptr() for tensor in (ids, weights, new_ids, new_weights)]
    n = _compiled(ids.dtype, weights.dtype)(*pointers, 0, *topk_ids.shape, empty_id, False)
    return new_ids, new_weights.to(topk_weights.dtype), n


def sum_by_row(outputs: Tensor, rows: Tensor, T: int) -> Tensor:
    """Add up the pairs' outputs by row, in the order of the pairs.

    The sum is in float32 (float64 of float64 outputs), and is rounded to the outputs' dtype once.

    Args:
        outputs: ``[n, H]``.
        rows: ``[n]``, int64.
        T: Number of rows.

    Returns:
        ``[T, H]``; a row without a pair is 0.
    """
    wide = outputs if outputs.dtype in _WIDE else outputs.float()
    return wide.new_zeros(T, outputs.shape[1]).index_add_(0, rows, wide).to(outputs.dtype)


def _inputs(topk_ids: Tensor, topk_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids and weights as the compiled loop reads them."""
    wide = topk_weights if topk_weights.dtype in _WIDE else topk_weights.float()
    return topk_ids.contiguous(), wide.contiguous()


@cache
def _compiled(ids_dtype: torch.dtype, weights_dtype: torch.dtype) -> Callable[..., int]:
    from numba import types

    from sere.flatten import loops
    from sere.reroute.backends.cpu.call import compile_loop

    ids = types.CPointer({torch.int32: types.int32, torch.int64: types.int64}[ids_dtype])
    weights = types.CPointer(types.float32 if weights_dtype is torch.float32 else types.float64)
    pointers = (ids, weights, ids, weights, types.CPointer(types.int64))
    signature = types.int64(*pointers, *[types.int64] * 3, types.boolean)
    compiled = compile_loop(signature, loops.merge_slots)
    arguments = [*[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 3, ctypes.c_bool]
    return ctypes.CFUNCTYPE(ctypes.c_int64, *arguments)(compiled.address)
