"""Launch the kernel on the device of the tensors, on PyTorch's current stream."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sere.errors import BackendUnavailable, InputError
from sere.reroute.backends import torch_ops
from sere.reroute.backends.cuda.compiler import cubin, forget
from sere.reroute.backends.cuda.launch import Launch, entry_of, make_launch, too_large
from sere.reroute.backends.cuda.layer import Layer, for_torch, prepare
from sere.reroute.backends.registry import warn_of_fallback
from sere.reroute.backends.trial import in_one_line, on_cuda, try_step
from sere.reroute.batch import Routing, TokenBatch

# What engines route by as a rule, and so what is tried first.
TRIED = (torch.int32, torch.float32)


def run(batch: TokenBatch, layer: Layer, counters: Tensor | None) -> Routing:
    """Re-route with one kernel launch; arguments and result as in the reference backend.

    Nothing is read back, and nothing is allocated but the result. Batches with more rows, or more slots per
    row, than the kernel takes go to the torch backend, which gives the same, with one log line.

    Raises:
        InputError: A graph is being captured, and ``num_tokens`` is not on the device of the ids.
        BackendUnavailable: A graph is being captured, and no such step has run on this device before.

    Source: docs/method.md section 4.
    """
    topk_ids, topk_weights, row_budgets, num_tokens, _ = batch
    T, K = topk_ids.shape
    reason = too_large(T, K, layer.keep.shape[0])
    if reason is not None:
        warn_of_fallback("cuda", reason)
        return torch_ops.run(batch, for_torch(layer), counters)
    ids, weights = topk_ids.contiguous(), topk_weights.contiguous()
    result = Routing(torch.empty_like(ids), torch.empty_like(weights))
    if ids.numel() == 0:
        return result
    if isinstance(num_tokens, Tensor) and num_tokens.device != ids.device:
        num_tokens = _read(num_tokens, ids.device)
    budgets = None if row_budgets is None else row_budgets.contiguous()
    launch(make_launch(TokenBatch(ids, weights, budgets, num_tokens), layer, result, counters), ids.device)
    return result


def _read(num_tokens: Tensor, device: torch.device) -> int:
    if torch.cuda.is_current_stream_capturing():
        raise InputError(
            f"num_tokens: expected a tensor on {device} while a CUDA graph is captured, got one on "
            f"{num_tokens.device}: its value now would be the value at every replay"
        )
    return int(num_tokens)


def launch(call: Launch, device: torch.device) -> None:
    """Put a launch on PyTorch's current stream of a device.

    Args:
        call: The launch.
        device: With its index.

    Raises:
        BackendUnavailable: A graph is being captured, and no such step has run on this device before.
    """
    index = device.index
    if index == torch.cuda.current_device():
        _put(call, index)
    else:
        with torch.cuda.device(index):
            _put(call, index)


def _put(call: Launch, index: int) -> None:
    kernel = kernel_of(index, call.entry)
    if index not in _thread.current:
        _set_current(index)
    stream = stream_of(torch._C._cuda_getCurrentRawStream(index))
    _core().launch(stream, _shape_of(call.blocks, call.threads), kernel, *call.kernel_args)


class _Thread(threading.local):
    """The devices that this thread has made current, once each."""

    def __init__(self) -> None:
        self.current: set[int] = set()


_thread = _Thread()


def _set_current(index: int) -> None:
    # A launch needs the device's context on its own thread. PyTorch puts it there at a call that needs it,
    # and a tensor from its pool needs none: a new thread whose first work is this launch would be without.
    _core().Device(index).set_current()
    _thread.current.add(index)


@cache
def _core() -> Any:
    import cuda.core

    return cuda.core


@cache
def _shape_of(blocks: int, threads: int) -> Any:
    return _core().LaunchConfig(grid=blocks, block=threads)


@cache
def stream_of(handle: int) -> Any:
    """Return PyTorch's stream as cuda-core's own: handing over foreign objects is deprecated there.

    Args:
        handle: The stream's address, 0 for the current device's default; PyTorch keeps its streams for good.
    """
    return _core().Stream.from_handle(handle)


@cache
def kernel_of(index: int, entry: str) -> Any:
    """Return an entry, loaded for a device; at its first use on the device it is compiled, or read.

    Args:
        index: The device's; it must be the current one.
        entry: The entry's name.

    Raises:
        ImportError: cuda-core is not installed.
        BackendUnavailable: A graph is being captured: loading would break it.
        Exception: NVRTC is missing, or the driver refuses the code; cuda-core's own classes.
    """
    _refuse_capture(index, entry)
    _set_current(index)
    major, minor = torch.cuda.get_device_capability(index)
    arch = f"sm_{major}{minor}"
    try:
        return _loaded(arch, entry)
    except Exception:
        # A damaged file in the cache must not stand in the way for good.
        if not forget(arch, entry):
            raise
    return _loaded(arch, entry)


def _loaded(arch: str, entry: str) -> Any:
    return _core().ObjectCode.from_cubin(cubin(arch, entry)).get_kernel(entry)


def _refuse_capture(index: int, entry: str) -> None:
    if torch.cuda.is_current_stream_capturing():
        _, ids, weights = entry.split("_")
        raise BackendUnavailable(
            f"backend 'cuda' has run no step with {ids} ids and {weights} weights on cuda:{index} yet, and "
            "cannot load code for it while a CUDA graph is captured; route one step of these dtypes before "
            "the capture begins"
        )


def why_not(index: int | None = None) -> str | None:
    """Compile and load the kernel for a device and try it; return why it cannot run, or None.

    Only the entry for int32 ids and float32 weights runs; the others are compiled at their first step. Each
    device's answer is kept.

    Args:
        index: The device's, or None for the current one.

    Raises:
        BackendUnavailable: A graph is being captured at the first call for the device.
    """
    return on_cuda(tried, index)


@cache
def tried(index: int) -> str | None:
    """Try a device for ``why_not``."""
    _refuse_capture(index, entry_of(*TRIED))
    try:
        _try(*TRIED, torch.device("cuda", index))
    except Exception as error:
        return in_one_line(error)
    return None


def _try(ids_dtype: torch.dtype, weights_dtype: torch.dtype, device: torch.device) -> None:
    try_step(prepare, run, ids_dtype, weights_dtype, device)
