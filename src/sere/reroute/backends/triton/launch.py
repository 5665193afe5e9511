"""Launch the Triton programs on the device of the tensors, on PyTorch's current stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sere.errors import BackendUnavailable, InputError
from sere.reroute.backends import torch_ops
from sere.reroute.backends.registry import warn_of_fallback
from sere.reroute.backends.torch_ops import Layer
from sere.reroute.backends.trial import in_one_line, on_cuda, try_step
from sere.reroute.backends.triton.layer import for_torch, prepare
from sere.reroute.batch import USUAL_DTYPES, Routing, StepDtypes, TokenBatch

MOST_EXPERTS, MOST_SLOTS_PER_ROW = 1024, 32
# Of each weight type: its number in slots.py, and the integer of its size.
KINDS = {
    torch.float32: (0, torch.int32),
    torch.bfloat16: (1, torch.int16),
    torch.float16: (2, torch.int16),
    torch.float64: (3, torch.int64),
}
# Numbers in the buffer behind those of the experts.
STEP_NUMBERS = 4
# With it, a product and a sum would be rounded once instead of twice.
OPTIONS = {"enable_fp_fusion": False}


class Shape(NamedTuple):
    """What the programs of a layer and its rows are compiled for.

    Attributes:
        K: Slots per row.
        KP: K rounded up to a power of two.
        E: Experts.
        EP: E rounded up to a power of two.
        R: Rows of a program.
        B: Experts of a program that looks for targets.
        C: Experts that are compared at a time.
    """

    K: int
    KP: int
    E: int
    EP: int
    R: int
    B: int
    C: int

    @classmethod
    @cache
    def of(cls, K: int, E: int) -> Shape:
        """Return the tiles: 128 slots, and 2^12 pairs of experts where that is enough. Not measured."""
        KP, EP = max(2, _power(K)), max(16, _power(E))
        pairs = 2**12 // EP
        return cls(K, KP, E, EP, R=128 // KP, B=min(32, max(8, pairs)), C=min(EP, max(8, pairs)))

    @property
    def warps(self) -> int:
        """How many warps a program has."""
        return 4 if self.EP <= 256 else 8


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def run(batch: TokenBatch, layer: Layer, counters: Tensor | None) -> Routing:
    """Re-route with three launches, or four with ``targets="active"``; arguments as in the reference backend.

    Nothing is read back. Batches with more slots per row than a program takes go to the torch backend, which
    gives the same, with one log line.

    Raises:
        InputError: A graph is being captured, and ``num_tokens`` is not on the device of the ids.
        BackendUnavailable: No such step ran on this device before, and a graph is being captured, or Triton
            cannot compile or launch the programs for it.

    Source: docs/method.md section 4.
    """
    topk_ids, topk_weights, row_budgets, num_tokens, _ = batch
    K, E = topk_ids.shape[1], layer.keep.shape[0]
    if K > MOST_SLOTS_PER_ROW:
        reason = f"it takes at most {MOST_SLOTS_PER_ROW} slots per row, these rows have {K}"
        warn_of_fallback("triton", reason)
        return torch_ops.run(batch, for_torch(layer), counters)
    ids, weights = topk_ids.contiguous(), topk_weights.contiguous()
    result = Routing(torch.empty_like(ids), torch.empty_like(weights))
    if ids.numel() == 0:
        return result
    if isinstance(num_tokens, Tensor) and num_tokens.device != ids.device:
        num_tokens = _read(num_tokens, ids.device)
    step = TokenBatch(ids, weights, row_budgets, num_tokens)
    kind = (ids.device, ids.dtype, weights.dtype, Shape.of(K, E), layer.substitutes is None, layer.config)
    if kind not in _ready:
        _refuse_capture(ids.device)
    try:
        if _is_another(ids.device):
            with torch.cuda.device(ids.device):
                _launch(step, layer, result, counters)
        else:
            _launch(step, layer, result, counters)
    except Exception as error:
        if kind in _ready or isinstance(error, torch.OutOfMemoryError):
            raise
        raise BackendUnavailable(
            f"backend 'triton' cannot run steps with {StepDtypes(ids.dtype, weights.dtype)}, "
            f"{K} slots per row and {E} experts on {ids.device}: {in_one_line(error)}; choose backend='torch'"
        ) from error
    _ready.add(kind)
    return result


def _is_another(device: torch.device) -> bool:
    return device.type == "cuda" and device.index != torch.cuda.current_device()


def _read(num_tokens: Tensor, device: torch.device) -> int:
    if _is_capturing(device):
        raise InputError(
            f"num_tokens: expected a tensor on {device} while a CUDA graph is captured, got one on "
            f"{num_tokens.device}: its value now would be the value at every replay"
        )
    return int(num_tokens)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


# The kinds of steps whose programs are compiled and loaded, by device, dtypes, tiles and options.
_ready: set[tuple[Any, ...]] = set()


def _refuse_capture(device: torch.device) -> None:
    if _is_capturing(device):
        raise BackendUnavailable(
            f"backend 'triton' has run no such step on {device} yet, and its programs cannot be loaded while "
            "a CUDA graph is captured; route one step of these dtypes before the capture begins"
        )


def _launch(batch: TokenBatch, layer: Layer, result: Routing, counters: Tensor | None) -> None:
    from sere.reroute.backends.triton import kernels

    ids, weights, row_budgets, num_tokens, _ = batch
    position, limits, keep, sensitivity, substitutes, config = layer
    shape = Shape.of(ids.shape[1], keep.shape[0])
    T, K, KP, E, EP, R, B, C = ids.shape[0], *shape
    options = OPTIONS | {"num_warps": shape.warps}
    kind, of_size = KINDS[weights.dtype]
    given, N = 0, T
    budgets_p = num_tokens_p = limits
    if row_budgets is not None:
        given |= 3 if row_budgets.dtype is torch.int64 else 1
        budgets_p = row_budgets.contiguous().view(torch.int32)
    if isinstance(num_tokens, Tensor):
        given |= 12 if num_tokens.dtype is torch.int64 else 4
        num_tokens_p = num_tokens.reshape(1).view(torch.int32)
    elif num_tokens is not None:
        N = int(num_tokens)
    given |= 0 if counters is None else 16
    buffer = torch.zeros(5 * E + STEP_NUMBERS, dtype=torch.int64, device=ids.device)
    counters_p = buffer if counters is None else counters
    bits = weights.view(of_size)
    rows, experts = (-(-T // R),), (-(-E // B),)
    kernels.vote[rows](
        ids, bits, budgets_p, num_tokens_p, limits, keep, buffer, T, N, given,
        K=K, KP=KP, E=E, R=R, KIND=kind, **options,
    )  # fmt: skip
    kernels.choose[experts](
        buffer,
        position,
        limits,
        sensitivity,
        counters_p,
        given,
        E=E,
        EP=EP,
        B=B,
        C=C,
        CAP=config.cap,
        **options,
    )
    if config.active_targets:
        kernels.retarget[experts](buffer, position, E=E, EP=EP, B=B, **options)
    kernels.apply[rows](
        ids, bits, result.ids, result.weights.view(of_size), budgets_p, num_tokens_p, limits,
        limits if substitutes is None else substitutes, buffer, counters_p, T, N, given,
        K=K, KP=KP, E=E, EP=EP, R=R, KIND=kind, SCALED=substitutes is not None, MERGE=config.merge,
        SENTINEL=config.sentinel, **options,
    )  # fmt: skip


def why_not(index: int | None = None, dtypes: Sequence[StepDtypes] = USUAL_DTYPES) -> str | None:
    """Compile the programs for a device and try them; return why they cannot run, or None.

    Args:
        index: The device's, or None for the current one. Its answers are kept.
        dtypes: Of the steps that it must run.

    Raises:
        BackendUnavailable: A graph is being captured, and the device was not asked for these dtypes before.
    """
    return on_cuda(tried, index, dtypes)


@cache
def tried(index: int, dtypes: StepDtypes) -> str | None:
    """Try one kind of steps on a device, for ``why_not``."""
    device = torch.device("cuda", index)
    _refuse_capture(device)
    try:
        try_step(prepare, run, dtypes, device)
    except Exception as error:
        cause = error.__cause__
        return in_one_line(cause if isinstance(cause, Exception) else error)
    return None
