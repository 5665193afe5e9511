"""The ``cpu`` backend: one compiled function per call, through raw pointers.

Numba compiles it at first use and keeps the result on disk where it may. It is called through ctypes:
handing numpy arrays to a numba dispatcher would cost more than the work itself.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
import torch
from numba import types
from torch import Tensor

from sere.files import others_can_write
from sere.reroute.backends.cpu import kernel
from sere.reroute.batch import Routing, TokenBatch
from sere.reroute.constants import LAYER_BUDGET, PADDING_BUDGET
from sere.reroute.neighbors import rank_neighbors
from sere.reroute.raw_layer import KernelConfig, RawLayer
from sere.warn_once import WarnOnce

warn_once = WarnOnce(logging.getLogger("sere"))

_UNCACHED = (
    "sere: the cpu backend is compiled again in each process, because its code cannot be cached (%s); "
    "set NUMBA_CACHE_DIR to a folder that you alone can write to"
)

_IDS = {torch.int32: types.int32, torch.int64: types.int64}
_WEIGHTS = {torch.float32: types.float32, torch.float64: types.float64}


class Layer(NamedTuple):
    """What the compiled loops read, contiguous.

    Attributes:
        order: ``[E, E]``, int32; row e lists the other experts, most similar first (ties: lower id), e last.
        counts: ``[E]``, int32; how many of ``order[e]`` reach the threshold.
        limits, keep, sensitivity, substitutes, config: As ``RawLayer.shared`` returns them.
    """

    order: Tensor
    counts: Tensor
    limits: Tensor
    keep: Tensor
    sensitivity: Tensor
    substitutes: Tensor | None
    config: KernelConfig


def prepare(raw: RawLayer, device: torch.device) -> Layer:
    """Sort each expert's neighbors and count those that reach the threshold."""
    order, counts = rank_neighbors(raw.similarity, raw.threshold)
    order = order.to(device, torch.int32).contiguous()
    return Layer(order, counts.to(device, torch.int32), *raw.shared(device))


def run(batch: TokenBatch, layer: Layer, counters: Tensor | None) -> Routing:
    """Re-route with a compiled loop; arguments and result as in the reference backend.

    Source: docs/method.md section 4.
    """
    topk_ids, topk_weights, row_budgets, num_tokens, _ = batch
    order, counts, limits, keep, sensitivity, substitutes, config = layer
    T, K = topk_ids.shape
    dtype = topk_weights.dtype
    wide = topk_weights if dtype in _WEIGHTS else topk_weights.float()
    ids, weights = topk_ids.contiguous(), wide.contiguous()
    new_ids = torch.empty_like(ids)
    new_weights = torch.empty_like(weights)
    if row_budgets is not None:
        if row_budgets.dtype is torch.int64:
            # As int32 alone, 2^32 + 1 would be 1.
            padding = row_budgets < LAYER_BUDGET
            row_budgets = row_budgets.clamp(LAYER_BUDGET, K).masked_fill(padding, PADDING_BUDGET)
        row_budgets = row_budgets.to(torch.int32).contiguous()
    given = (
        (0 if substitutes is None else kernel.HAS_SUBSTITUTES)
        | (0 if row_budgets is None else kernel.HAS_ROW_BUDGETS)
        | (0 if counters is None else kernel.HAS_COUNTERS)
    )
    some_nan = _compiled(ids.dtype, weights.dtype)(
        ids.data_ptr(),
        weights.data_ptr(),
        new_ids.data_ptr(),
        new_weights.data_ptr(),
        order.data_ptr(),
        counts.data_ptr(),
        limits.data_ptr(),
        keep.data_ptr(),
        sensitivity.data_ptr(),
        0 if substitutes is None else substitutes.data_ptr(),
        0 if row_budgets is None else row_budgets.data_ptr(),
        0 if counters is None else counters.data_ptr(),
        T,
        K,
        keep.shape[0],
        T if num_tokens is None else int(num_tokens),
        *config,
        given,
    )
    if weights.dtype is dtype:
        return Routing(new_ids, new_weights)
    narrow = new_weights.to(dtype)
    if some_nan:
        # A conversion keeps no NaN's bits: of those that passed through, they are put back.
        narrow = torch.where(weights.isnan() & new_weights.isnan(), topk_weights, narrow)
    return Routing(new_ids, narrow)


@cache
def _compiled(ids_dtype: torch.dtype, weights_dtype: torch.dtype) -> Callable[..., bool]:
    ids, weights = types.CPointer(_IDS[ids_dtype]), types.CPointer(_WEIGHTS[weights_dtype])
    int32s, flags = types.CPointer(types.int32), types.CPointer(types.uint8)
    float32s = types.CPointer(types.float32)
    pointers = (ids, weights, ids, weights, int32s, int32s, int32s, flags, float32s)
    optional = (float32s, int32s, types.CPointer(types.int64))
    signature = types.boolean(*pointers, *optional, *[types.int64] * 9)
    compiled = compile_loop(signature, kernel.reroute)
    prototype = ctypes.CFUNCTYPE(ctypes.c_bool, *[ctypes.c_void_p] * 12, *[ctypes.c_int64] * 9)
    return prototype(compiled.address)


def compile_loop(signature: Any, loop: Callable[..., Any]) -> Any:
    """Compile, from the cache on disk or into it; without one where no folder can be written to.

    Args:
        signature: Numba's signature.
        loop: The function in plain Python.

    Returns:
        Numba's ``CFunc``; its ``address`` is called through ctypes.
    """
    try:
        _check_named_cache()
        return numba.cfunc(signature, cache=True)(loop)
    except (RuntimeError, OSError) as error:
        reason = str(error)
        warn_once(reason, _UNCACHED, reason)
        return numba.cfunc(signature)(loop)


def _check_named_cache() -> None:
    """Refuse a named folder in which somebody else could put code, which would run in this process.

    Without a name, Numba keeps its code beside this source, or in the user's own folder.

    Raises:
        OSError: Others can write to it.
    """
    folder = Path(numba.config.CACHE_DIR or os.devnull)
    if folder.is_dir() and (reason := others_can_write(folder)) is not None:
        raise OSError(f"{folder}: {reason}")
