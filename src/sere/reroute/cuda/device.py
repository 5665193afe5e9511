"""Launch the kernel on the device of the tensors, on PyTorch's current stream."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from sere.reroute import vectorised
from sere.reroute.backends import say_fallback
from sere.reroute.cuda.compiler import cubin
from sere.reroute.cuda.launch import IDS, WEIGHTS, Launch, entries, prepare, too_large
from sere.reroute.types import COUNTERS, Neighbours, Rules, prepare_neighbours
from sere.similarity.layer import LayerSimilarity


def run(
    topk_ids: Tensor,
    topk_weights: Tensor,
    neighbours: Neighbours,
    rules: Rules,
    row_budget: Tensor | None,
    num_tokens: Tensor | int | None,
    counters: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Re-route with one kernel launch; arguments and result as in the reference backend.

    Nothing is read back, and nothing is allocated but the result. Rows with more slots than the kernel
    takes go to the torch backend, which gives the same, with one log line.

    Source: METHOD.md section 4.
    """
    reason = too_large(topk_ids.shape[1], neighbours.keep.shape[0])
    if reason is not None:
        say_fallback("cuda", reason)
        return vectorised.run(topk_ids, topk_weights, neighbours, rules, row_budget, num_tokens, counters)
    ids, weights = topk_ids.contiguous(), topk_weights.contiguous()
    new_ids, new_weights = torch.empty_like(ids), torch.empty_like(weights)
    if ids.numel() == 0:
        return new_ids, new_weights
    if isinstance(num_tokens, Tensor) and num_tokens.device != ids.device:
        num_tokens = int(num_tokens)
    budget = None if row_budget is None else row_budget.contiguous()
    launch(
        prepare(ids, weights, new_ids, new_weights, neighbours, rules, budget, num_tokens, counters),
        ids.device,
    )
    return new_ids, new_weights


def launch(prepared: Launch, device: torch.device) -> None:
    """Put a launch on PyTorch's current stream of a device."""
    from cuda.core import launch as put

    with torch.cuda.device(device):
        kernel = kernels(torch.cuda.current_device())[prepared.entry]
        config = _shape_of(prepared.blocks, prepared.threads)
        put(TorchStream(torch.cuda.current_stream().cuda_stream), config, kernel, *prepared.words)


@cache
def _shape_of(blocks: int, threads: int) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=blocks, block=threads)


class TorchStream:
    """PyTorch's stream, as cuda-core wants to see it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


@cache
def kernels(index: int) -> dict[str, Any]:
    """Return the entries, loaded for a device, by name.

    Args:
        index: The device's.

    Raises:
        ImportError: cuda-core is not installed.
        Exception: NVRTC is missing, or the driver refuses the code; cuda-core's own classes.
    """
    from cuda.core import Device, ObjectCode

    Device(index).set_current()
    major, minor = torch.cuda.get_device_capability(index)
    code = ObjectCode.from_cubin(cubin(f"sm_{major}{minor}"))
    return {entry: code.get_kernel(entry) for entry in entries()}


@cache
def why_not() -> str | None:
    """Compile and load the kernel for the current device and try it; return why it cannot run, or None.

    Every entry runs once, so that none is loaded while a graph is captured.
    """
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    try:
        for ids_dtype in IDS:
            for weights_dtype in WEIGHTS:
                _try(ids_dtype, weights_dtype)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return None


def _try(ids_dtype: torch.dtype, weights_dtype: torch.dtype) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    ids = torch.tensor([[0, 1], [2, 3]], dtype=ids_dtype, device=device)
    weights = torch.tensor([[0.75, 0.25], [0.5, 0.375]], dtype=weights_dtype, device=device)
    layer = LayerSimilarity(torch.full((4, 4), 0.5).fill_diagonal_(1.0))
    neighbours = prepare_neighbours(layer, threshold=0.0, device=device)
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)
    rules = Rules(select_top_k=1, min_active=0, active_targets=False, merge=0, sentinel=0)
    found = run(ids, weights, neighbours, rules, None, None, counters)[0].tolist()
    if found != [[0, 0], [2, 0]]:
        raise RuntimeError(f"the kernel gave {found} where [[0, 0], [2, 0]] is right")
