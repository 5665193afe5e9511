"""The ``cuda`` backend's host code with the kernel's own source run on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from sere.reroute.backends.cuda import device
from sere.reroute.backends.cuda.launch import Launch
from sere.reroute.types import Neighbors, Rules

from .build import build


def run(
    topk_ids: Tensor,
    topk_weights: Tensor,
    neighbors: Neighbors,
    rules: Rules,
    row_budgets: Tensor | None,
    num_tokens: Tensor | int | None,
    counters: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Do what ``sere.reroute.backends.cuda.run`` does, all but the launch itself."""
    arguments = (topk_ids, topk_weights, neighbors, rules, row_budgets, num_tokens, counters)
    if topk_ids.device.type == "cuda":
        return device.run(*arguments)
    real_launch = device.launch
    device.launch = launch
    try:
        return device.run(*arguments)
    finally:
        device.launch = real_launch


def launch(
    prepared: Launch, device: torch.device, *, blocks: int = 0, threads: int = 0, seed: int = 1
) -> None:
    """Run a launch on fibers.

    Args:
        prepared: The launch.
        device: Not looked at.
        blocks: Other than the launch's own number of blocks, or 0.
        threads: Other than its own number of threads, or 0.
        seed: In which order threads take turns.
    """
    words = (ctypes.c_int64 * len(prepared.words))(*prepared.words)
    why = _library()(
        prepared.entry.encode(), blocks or prepared.blocks, threads or prepared.threads, seed, words
    )
    assert why is None, why.decode()


def open_library(path: Path) -> Callable[..., bytes | None]:
    """Return the function of a library that runs a launch."""
    function = ctypes.CDLL(str(path)).shim_launch
    function.restype = ctypes.c_char_p
    return function


@cache
def _library() -> Callable[..., bytes | None]:
    return open_library(build("library.cpp", "-O2", "-shared", "-fPIC"))
