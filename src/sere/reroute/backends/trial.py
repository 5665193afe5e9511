"""One tiny step whose result is known: what a backend must get right on a device before it is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sere.reroute.batch import Routing, StepDtypes, TokenBatch
from sere.reroute.constants import LIMIT_ROWS, MERGE_NONE
from sere.reroute.raw_layer import KernelConfig, RawLayer
from sere.reroute.stats import COUNTERS

Prepare = Callable[[RawLayer, torch.device], Any]
Run = Callable[[TokenBatch, Any, Tensor | None], Routing]

# What comes back: the second slot of the first row goes from expert 1 to 0, and this is what is counted.
IDS, WEIGHTS = [[0, 0], [2, 3]], [[0.75, 0.25], [0.5, 0.375]]
COUNTED = {
    "steps": 1, "rows": 2, "distinct_before": 4, "distinct_after": 3, "slots": 4, "slots_rerouted": 1,
    "slots_computed": 4, "critical": 0,
}  # fmt: skip


def try_step(prepare: Prepare, run: Run, dtypes: StepDtypes, device: torch.device) -> None:
    """Run the step on a device, and look at what comes back.

    Raises:
        RuntimeError: It is not what the reference gives.
    """
    ids = torch.tensor([[0, 1], [2, 3]], dtype=dtypes.ids, device=device)
    weights = torch.tensor(WEIGHTS, dtype=dtypes.weights, device=device)
    similarity = torch.full((4, 4), 0.5, device="cpu").fill_diagonal_(1.0)
    config = KernelConfig(cap=False, active_targets=False, merge=MERGE_NONE, sentinel=0)
    # S = 1, and M = 3: the heavier of the two experts that no row needs is primary, too.
    limits = torch.tensor([1] + [3] * LIMIT_ROWS + [0], dtype=torch.int32, device="cpu")
    keep, sensitivity = torch.zeros(4, dtype=torch.bool, device="cpu"), torch.ones(4, device="cpu")
    raw = RawLayer(similarity, 0.0, limits, keep, sensitivity, None, config)
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)
    routing = run(TokenBatch(ids, weights), prepare(raw, device), counters)
    # The counters, too: an earlier result may lie where a launch that does nothing leaves its own.
    counted = dict(zip(COUNTERS, counters.tolist(), strict=True))
    found = {"ids": routing.ids.tolist(), "weights": routing.weights.tolist(), "counts": counted}
    for what, right in {"ids": IDS, "weights": WEIGHTS, "counts": COUNTED}.items():
        if found[what] != right:
            raise RuntimeError(f"the kernel gave the {what} {found[what]} where {right} is right")


def on_cuda(
    tried: Callable[[int, StepDtypes], str | None], index: int | None, dtypes: Sequence[StepDtypes]
) -> str | None:
    """Return why a backend cannot run on a CUDA device, or None if it can.

    Args:
        tried: Returns that for the device of an index and one kind of steps.
        index: The device's, or None for the current one.
        dtypes: Of the steps that it must run.
    """
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    device = torch.cuda.current_device() if index is None else index
    for one in dtypes:
        reason = tried(device, one)
        if reason is not None:
            return f"with {one}, {reason}"
    return None


def in_one_line(error: Exception) -> str:
    """Return a failure as a reason that fits a log line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
