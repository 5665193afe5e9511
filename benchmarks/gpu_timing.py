"""Time CUDA graphs of many steps in turns, and say what else can change a figure."""

from __future__ import annotations

import random
import subprocess
import time

import torch

from gpu_variants import COLD, DEVICE, Step
from sere.bench.timing import spread
from sere.provenance import installed_version

SPIN_SECONDS, WARM_UP = 0.3, 2
# Clock ticks that the device waits before a replay, half a millisecond: by then all of it is handed over.
HEAD_START = 1_000_000


def capture(step: Step, count: int) -> torch.cuda.CUDAGraph:
    """Return a graph of ``count`` steps."""
    for i in range(3):
        step(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            step(i)
    return graph


def spin() -> str | None:
    """Keep the device busy until its clock has risen; return the clock as nvidia-smi tells it, or None."""
    square, until = torch.ones(2048, 2048, device=DEVICE), time.perf_counter() + SPIN_SECONDS
    while time.perf_counter() < until:
        torch.mm(square, square)
        torch.cuda.synchronize()
    return driver_says("clocks.sm")


def driver_says(field: str) -> str | None:
    """Return one field of ``nvidia-smi`` for the device, or None where the tool is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "-i"]
    try:
        identity = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        run = subprocess.run([*command, identity], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None
    return run.stdout.strip() or None


def gpu_versions() -> dict[str, str | None]:
    """Return what else can change a figure: driver, cuda-core, compiler."""
    packages = {name: installed_version(name) for name in ("cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc")}
    return {"driver": driver_says("driver_version"), "cuda": torch.version.cuda, **packages}


def time_in_turns(
    graphs: dict[str, torch.cuda.CUDAGraph], steps: dict[str, int], rounds: int
) -> dict[str, list[float]]:
    """Return microseconds per step, per variant, of each round after two that warm up; turns are shuffled."""
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    turns = random.Random(0)
    for turn in range(rounds + WARM_UP):
        for name in turns.sample([*graphs], len(graphs)):
            start, end = _event(), _event()
            torch.cuda._sleep(HEAD_START)  # type: ignore[no-untyped-call]
            start.record()
            graphs[name].replay()
            end.record()
            end.synchronize()
            if turn >= WARM_UP:
                samples[name].append(start.elapsed_time(end) * 1e3 / steps[name])
    return samples


def without_filling(samples: dict[str, list[float]]) -> dict[str, list[float]]:
    """Take the time of the filling off the cold variants, turn by turn."""
    fill = samples["fill"]
    return {
        name: [a - b for a, b in zip(values, fill, strict=True)] if name in COLD else values
        for name, values in samples.items()
    }


def summaries(samples: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return median, p20 and p80 of each variant."""
    found = {name: spread(values) for name, values in samples.items()}
    return {name: {"median": one.p50, "p20": one.p20, "p80": one.p80} for name, one in found.items()}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
