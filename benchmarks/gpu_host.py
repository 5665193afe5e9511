"""Time what a call of the cuda backend costs on the host: ``python benchmarks/gpu_host.py``.

It runs the backend's own code (checks, outputs, arguments) on CPU tensors, so it needs no GPU. First without
the launch; then, if cuda-core is installed, through cuda-core to the tests' driver for the CPU, which
launches nothing. The time of a real driver, and of PyTorch's lookup of device and stream, is not included.
Outputs come from the CPU's allocator.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sere.bench.timing import spread, turns
from sere.config import RerouteConfig
from sere.provenance import installed_version, machine
from sere.reroute import COUNTERS, PreparedLayer, TokenBatch
from sere.reroute.backends.cuda import device
from sere.reroute.backends.cuda.launch import Launch
from sere.reroute.batch import USUAL_DTYPES
from sere.reroute.limits import layer_limits
from sere.reroute.raw_layer import KernelConfig, RawLayer
from tests.support.shim import driver

T, E, K = 64, 128, 8
CALLS, ROUNDS = 4000, 24
Put = Callable[[Launch, torch.device], None]


def leave_out(call: Launch, device: torch.device) -> None:
    """Stand in for the launch."""


def ways_to_launch(patch: pytest.MonkeyPatch) -> dict[str, Put]:
    """Return the launches that are timed; the second is cuda-core's own where it is installed."""
    reason = driver.why_not()
    if reason is not None:
        print(f"cuda-core is not timed: {reason}")
        return {"left out": leave_out}
    at = driver.put_in_place(patch)
    # A kernel is tried before its first launch, and only one that runs passes.
    device.tried(driver.GPU.index, *USUAL_DTYPES)
    at.runs.value = 0
    through = f"cuda-core {installed_version('cuda-core')}, driver that launches nothing"
    return {"left out": leave_out, through: device.launch}


def make_calls() -> dict[str, Callable[[], object]]:
    """Return a bare call and a call as an engine makes it."""
    similarity = torch.rand(E, E, generator=torch.Generator().manual_seed(0)).fill_diagonal_(1.0)
    config = RerouteConfig(threshold=0.3)
    limits, keep = layer_limits(config.for_layer(0), E, K), torch.zeros(E, dtype=torch.bool)
    raw = RawLayer(similarity, config.threshold, limits, keep, torch.ones(E), None, KernelConfig.of(config))
    prepared = PreparedLayer(raw, config, "cuda", torch.device("cpu"))
    ids, weights = torch.arange(T * K, dtype=torch.int32).reshape(T, K) % E, torch.rand(T, K)
    budget, counters = torch.ones(T, dtype=torch.int32), torch.zeros(len(COUNTERS), dtype=torch.int64)
    num_tokens = torch.tensor(T - 4)
    return {
        "bare": lambda: prepared.route(TokenBatch(ids, weights)),
        "with budgets and counters": lambda: prepared.route(
            TokenBatch(ids, weights, budget, num_tokens), counters
        ),
    }


def time_block(put: Put, call: Callable[[], object]) -> float:
    """Return the mean microseconds per call, over one block of calls that launch by ``put``.

    It is the thread's own processor time, because a call waits for nothing.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "launch", put)
        started = time.thread_time()
        for _ in range(CALLS):
            call()
        return (time.thread_time() - started) / CALLS * 1e6


def main() -> None:
    """Time blocks of calls in turns and print their medians."""
    torch.set_num_threads(1)
    calls = make_calls()
    with pytest.MonkeyPatch.context() as patch:
        ways = ways_to_launch(patch)
        times: dict[tuple[str, str], list[float]] = {case: [] for case in product(ways, calls)}
        for round_number in range(ROUNDS + 1):
            for way, name in turns(list(times), round_number):
                took = time_block(ways[way], calls[name])
                # The first round warms up: there the kernel is compiled and loaded.
                if round_number > 0:
                    times[way, name].append(took)
    rows = [[way, *(shown(times[way, name]) for name in calls)] for way in ways]
    print(tabulate(rows, ["launch", *calls]))
    print(f"T={T} E={E} K={K}; us per call: median of {ROUNDS} blocks (20th to 80th percentile)")
    print(f"{machine()['cpu']}; torch {torch.__version__}")


def shown(times: list[float]) -> str:
    """Return median and spread as text."""
    found = spread(times)
    return f"{found.p50:.1f} ({found.p20:.1f} to {found.p80:.1f})"


if __name__ == "__main__":
    main()
