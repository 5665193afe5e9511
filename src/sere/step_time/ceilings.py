"""What a machine can do at most: how fast it reads weights, and how fast it computes with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from sere.errors import ConfigError

SECONDS = 2.0
"""About how long `measure` takes by default."""
COPIED = 256 * 2**20
"""Bytes of the tensor that is copied: several times the caches of most processors."""
HIDDEN, WIDTH = 2048, 768
"""Hidden size and width of the expert: those of Qwen3-30B-A3B, 9 MiB in bfloat16."""
ROWS = 64
"""Rows of the expert on a CPU."""
EXPERTS_ON_GPU, ROWS_ON_GPU = 4, 512
"""On a GPU: so many experts at once, of so many rows; one of 64 rows is too short to be timed."""
_LEAST_RUNS = 3

Run = Callable[[], Tensor]
"""Computes one expert once."""
ExpertKernel = Callable[[Tensor, Tensor, Tensor], Run]
"""Takes hidden states ``[rows, H]``, gate and up projection ``[2 W, H]`` and down projection ``[H, W]``."""


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


def measure(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    threads: int | None = None,
    *,
    kernel: ExpertKernel | None = None,
    seconds: float = SECONDS,
    copied: int = COPIED,
) -> Ceilings:
    """Measure the two ceilings of this machine.

    Bytes are those that a copy of a large tensor reads and writes. Operations are those of an expert (a gated
    MLP) whose weights stay in the caches: on a CPU one of `ROWS` rows, on a GPU `EXPERTS_ON_GPU` of
    `ROWS_ON_GPU` rows each, together. The fastest run counts. So other work on the machine lowers the result
    only if it never pauses. Memory for two tensors of ``copied`` bytes is needed.

    Args:
        device: ``"cpu"``, or a CUDA device.
        dtype: Of the weights; a floating point type that the device multiplies.
        threads: Of a CPU; None for PyTorch's number. It is restored afterwards.
        kernel: An engine's expert kernel on a CPU; None for two products of PyTorch.
        seconds: How long to measure, half of it for each ceiling; each runs at least three times.
        copied: Bytes of the tensor that is copied.

    Raises:
        ConfigError: ``dtype`` is no floating point type, or the device is neither a CPU nor a GPU.
    """
    device = torch.device(device)
    if not dtype.is_floating_point:
        raise ConfigError(f"dtype: expected a floating point type such as torch.bfloat16, got {dtype}")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected 'cpu' or a CUDA device, got {str(device)!r}")
    on_gpu = device.type == "cuda"
    experts, rows = (EXPERTS_ON_GPU, ROWS_ON_GPU) if on_gpu else (1, ROWS)
    with torch.inference_mode(), _threads(threads):
        moved, copy_s = _copy(max(1, copied // dtype.itemsize), dtype, device, seconds / 2)
        compute_s = _fastest(_expert(experts, rows, dtype, device, kernel), device, seconds / 2)
        return Ceilings(
            bytes_per_s=moved / copy_s,
            flops_per_s=experts * rows * 2 * 3 * HIDDEN * WIDTH / compute_s,
            overlaps=on_gpu,
            device=device.type,
            dtype=str(dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )


def _copy(numel: int, dtype: torch.dtype, device: torch.device, seconds: float) -> tuple[int, float]:
    """Return the bytes that a copy reads and writes, and its seconds; the tensors are freed."""
    source = torch.ones(numel, dtype=dtype, device=device)
    target = torch.empty_like(source)
    return 2 * numel * dtype.itemsize, _fastest(lambda: target.copy_(source), device, seconds)


def _expert(
    experts: int, rows: int, dtype: torch.dtype, device: torch.device, kernel: ExpertKernel | None = None
) -> Run:
    """Return what computes gated MLPs of all rows: one by a kernel, several as two batched products."""

    def random(*shape: int) -> Tensor:
        generator = torch.Generator(device="cpu").manual_seed(0)
        return torch.randn(*shape, generator=generator, device="cpu").mul_(0.02).to(device, dtype)

    if experts == 1:
        hidden, up, down = random(rows, HIDDEN), random(2 * WIDTH, HIDDEN), random(HIDDEN, WIDTH)
        return (kernel or _products)(hidden, up, down)
    hidden = random(experts, rows, HIDDEN)
    up, down = random(experts, HIDDEN, 2 * WIDTH), random(experts, WIDTH, HIDDEN)
    return lambda: torch.bmm(_gated(torch.bmm(hidden, up)), down)


def _products(hidden: Tensor, up: Tensor, down: Tensor) -> Run:
    return lambda: linear(_gated(linear(hidden, up)), down)


def _gated(values: Tensor) -> Tensor:
    gate, up = values.chunk(2, dim=-1)
    return silu(gate).mul_(up)


def _fastest(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the seconds of the fastest run, after two that are not timed."""
    timed = _timed_on_gpu if device.type == "cuda" else _timed_on_cpu
    run()
    run()
    best, until, runs = math.inf, perf_counter() + seconds, 0
    while runs < _LEAST_RUNS or perf_counter() < until:
        best = min(best, timed(run))
        runs += 1
    return best


def _timed_on_cpu(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started


def _timed_on_gpu(run: Callable[[], object]) -> float:
    """Time by events; ten runs in a row, so that the device does not wait for the host."""
    times = 10
    event: Any = torch.cuda.Event
    first, last = event(enable_timing=True), event(enable_timing=True)
    first.record()
    for _ in range(times):
        run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / times


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """Let PyTorch use so many threads while the block runs."""
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
