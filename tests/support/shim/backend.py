"""The ``cuda`` backend's host code with the kernel's own source run on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from sere.reroute.backends.cuda import Layer, device, prepare
from sere.reroute.backends.cuda.launch import Launch
from sere.reroute.batch import Routing, TokenBatch

from .build import build

__all__ = ["Layer", "launch", "open_library", "prepare", "run"]


def run(batch: TokenBatch, layer: Layer, counters: Tensor | None) -> Routing:
    """Do what ``sere.reroute.backends.cuda.run`` does, all but the launch itself."""
    if batch.topk_ids.device.type == "cuda":
        return device.run(batch, layer, counters)
    real_launch = device.launch
    device.launch = launch
    try:
        return device.run(batch, layer, counters)
    finally:
        device.launch = real_launch


def launch(call: Launch, device: torch.device, *, blocks: int = 0, threads: int = 0, seed: int = 1) -> None:
    """Run a launch on fibers.

    Args:
        call: The launch.
        device: Not looked at.
        blocks: Other than the launch's own number of blocks, or 0.
        threads: Other than its own number of threads, or 0.
        seed: In which order threads take turns.
    """
    kernel_args = (ctypes.c_int64 * len(call.kernel_args))(*call.kernel_args)
    why = _library()(call.entry.encode(), blocks or call.blocks, threads or call.threads, seed, kernel_args)
    assert why is None, why.decode()


def open_library(path: Path) -> Callable[..., bytes | None]:
    """Return the function of a library that runs a launch."""
    function = ctypes.CDLL(str(path)).shim_launch
    function.restype = ctypes.c_char_p
    return function


@cache
def _library() -> Callable[..., bytes | None]:
    return open_library(build("library.cpp", "-O2", "-shared", "-fPIC"))
