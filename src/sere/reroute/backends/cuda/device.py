"""Launch the kernel on the device of the tensors, on PyTorch's current stream."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sere.errors import BackendUnavailable, InputError
from sere.reroute.backends import torch_ops
from sere.reroute.backends.cuda.compiler import cubin, forget
from sere.reroute.backends.cuda.launch import Launch, dtypes_of, make_launch, too_large
from sere.reroute.backends.cuda.layer import Layer, for_torch, prepare
from sere.reroute.backends.registry import warn_of_fallback
from sere.reroute.backends.trial import in_one_line, on_cuda, try_step
from sere.reroute.batch import USUAL_DTYPES, Routing, StepDtypes, TokenBatch


def run(batch: TokenBatch, layer: Layer, counters: Tensor | None) -> Routing:
    """Re-route with one kernel launch; arguments and result as in the reference backend.

    Nothing is read back, and nothing is allocated but the result. Only the first step of its dtypes on a
    device waits: the code for them is compiled, loaded and tried. Batches with more rows, or more slots per
    row, than the kernel takes go to the torch backend, which gives the same, with one log line.

    Raises:
        InputError: A graph is being captured, and ``num_tokens`` is not on the device of the ids.
        BackendUnavailable: As for `kernel_of`, at the first step of its dtypes on a device.

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
        BackendUnavailable: As for `kernel_of`, at the first launch of an entry on a device.
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
    """One thread.

    Attributes:
        current: The devices that it has made current, once each.
        trial: What the trial that it runs has loaded, by device and name; None outside of one.
    """

    def __init__(self) -> None:
        self.current: set[int] = set()
        self.trial: dict[tuple[int, str], Any] | None = None


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


# Entries that are loaded and gave the right result, by device and name.
_kernels: dict[tuple[int, str], Any] = {}


def kernel_of(index: int, entry: str) -> Any:
    """Return an entry, loaded for a device; at its first use there it is compiled, or read, and tried.

    Args:
        index: The device's; it must be the current one.
        entry: The entry's name.

    Raises:
        BackendUnavailable: At its first use: a graph is being captured, which loading would break; or
            cuda-core or NVRTC is missing, the driver refuses the code, or the trial gave a wrong result.
    """
    kernel = _kernels.get((index, entry))
    if kernel is not None:
        return kernel
    if _thread.trial is not None:
        kernel = _thread.trial[index, entry] = _load(index, entry)
        return kernel
    dtypes = dtypes_of(entry)
    reason = tried(index, dtypes)
    if reason is not None:
        raise BackendUnavailable(
            f"backend 'cuda' cannot run steps with {dtypes} on cuda:{index}: {reason}; "
            "choose backend='triton' or backend='torch', or convert ids or weights first"
        )
    return _kernels[index, entry]


def why_not(index: int | None = None, dtypes: Sequence[StepDtypes] = USUAL_DTYPES) -> str | None:
    """Compile and load the kernel for a device and try it; return why it cannot run, or None.

    Each kind of steps has an entry of its own. One that is not named here is compiled and tried at its first
    step. The answers are kept.

    Args:
        index: The device's, or None for the current one.
        dtypes: Of the steps that it must run.

    Raises:
        BackendUnavailable: A graph is being captured, and the device was not asked for these dtypes before.
    """
    return on_cuda(tried, index, dtypes)


@cache
def tried(index: int, dtypes: StepDtypes) -> str | None:
    """Try one kind of steps on a device, for ``why_not`` and the first step of a kind.

    Raises:
        BackendUnavailable: A graph is being captured: nothing is loaded then, and no answer is kept.
    """
    if torch.cuda.is_current_stream_capturing():
        raise BackendUnavailable(
            f"backend 'cuda' has run no step with {dtypes} on cuda:{index} yet, and cannot load code for it "
            "while a CUDA graph is captured; route one step of these dtypes before the capture begins"
        )
    _thread.trial = {}
    try:
        _try(dtypes, torch.device("cuda", index))
        _kernels.update(_thread.trial)
    except Exception as error:
        return in_one_line(error)
    finally:
        _thread.trial = None
    return None


def _try(dtypes: StepDtypes, device: torch.device) -> None:
    try_step(prepare, run, dtypes, device)


def _load(index: int, entry: str) -> Any:
    """Load an entry for the current device; errors are those of the imports, of NVRTC and of cuda-core."""
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
