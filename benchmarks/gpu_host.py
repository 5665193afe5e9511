"""Time what Python does before a launch, with the launch itself left out: ``python benchmarks/gpu_host.py``.

The cuda backend's own code on CPU tensors, so that it needs no GPU: checks, outputs, arguments. What
cuda-core and the driver take on top is not in it, and outputs come from the CPU's allocator.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from sere.reroute import COUNTERS, Plan
from sere.reroute.cuda import device
from sere.reroute.cuda.launch import Launch
from sere.reroute.types import Rules, prepare_neighbours
from sere.similarity.layer import LayerSimilarity

T, E, K = 64, 128, 8
CALLS, BLOCKS = 4000, 25


def leave_out(prepared: Launch, device: torch.device) -> None:
    """Stand in for the launch."""


def least_us(call: Callable[[], object]) -> float:
    """Return the time of a call in microseconds: the least mean of a block of calls."""
    means = []
    for _ in range(BLOCKS):
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        means.append((time.perf_counter() - started) / CALLS * 1e6)
    return min(means)


def main() -> None:
    """Print one line for a bare call and one for a call as an engine makes it."""
    torch.set_num_threads(1)
    similarity = torch.rand(E, E, generator=torch.Generator().manual_seed(0)).fill_diagonal_(1.0)
    neighbours = prepare_neighbours(LayerSimilarity(similarity), threshold=0.3)
    rules = Rules(select_top_k=1, min_active=0, active_targets=False, merge=0, sentinel=0)
    plan = Plan(neighbours, rules, "cuda", device.run)
    ids, weights = torch.arange(T * K, dtype=torch.int32).reshape(T, K) % E, torch.rand(T, K)
    budget, counters = torch.ones(T, dtype=torch.int32), torch.zeros(len(COUNTERS), dtype=torch.int64)
    num_tokens = torch.tensor(T - 4)
    device.launch = leave_out
    bare = least_us(lambda: plan.route(ids, weights))
    served = least_us(
        lambda: plan.route(ids, weights, row_budget=budget, num_tokens=num_tokens, counters=counters)
    )
    print(
        f"T={T} E={E} K={K}, launch left out: bare {bare:.1f} us, with budgets and counters {served:.1f} us"
    )


if __name__ == "__main__":
    main()
