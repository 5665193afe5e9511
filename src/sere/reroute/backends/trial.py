"""One tiny step whose result is known: what a backend must get right on a device before it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sere.reroute.batch import Routing, TokenBatch
from sere.reroute.constants import LIMIT_ROWS, MERGE_NONE
from sere.reroute.raw_layer import KernelConfig, RawLayer
from sere.reroute.stats import COUNTERS

Prepare = Callable[[RawLayer, torch.device], Any]
Run = Callable[[TokenBatch, Any, Tensor | None], Routing]


def try_step(
    prepare: Prepare, run: Run, ids_dtype: torch.dtype, weights_dtype: torch.dtype, device: torch.device
) -> None:
    """Run the step on a device, and look at what comes back.

    Raises:
        RuntimeError: It is not what the reference gives.
    """
    ids = torch.tensor([[0, 1], [2, 3]], dtype=ids_dtype, device=device)
    weights = torch.tensor([[0.75, 0.25], [0.5, 0.375]], dtype=weights_dtype, device=device)
    similarity = torch.full((4, 4), 0.5, device="cpu").fill_diagonal_(1.0)
    config = KernelConfig(cap=False, active_targets=False, merge=MERGE_NONE, sentinel=0)
    # S = 1, and M = 3: the heavier of the two experts that no row needs is primary, too.
    limits = torch.tensor([1] + [3] * LIMIT_ROWS + [0], dtype=torch.int32, device="cpu")
    keep, sensitivity = torch.zeros(4, dtype=torch.bool, device="cpu"), torch.ones(4, device="cpu")
    raw = RawLayer(similarity, 0.0, limits, keep, sensitivity, None, config)
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)
    found = run(TokenBatch(ids, weights), prepare(raw, device), counters).ids.tolist()
    if found != [[0, 0], [2, 3]]:
        raise RuntimeError(f"the kernel gave {found} where [[0, 0], [2, 3]] is right")


def on_cuda(tried: Callable[[int], str | None], index: int | None) -> str | None:
    """Return why a backend cannot run on a CUDA device, or None if it can.

    Args:
        tried: Returns that for the device of an index.
        index: The device's, or None for the current one.
    """
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return tried(torch.cuda.current_device() if index is None else index)


def in_one_line(error: Exception) -> str:
    """Return a failure as a reason that fits a log line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
