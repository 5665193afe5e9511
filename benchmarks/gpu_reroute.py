"""Time one re-routing step on a GPU: graph replays of many launches, variants in turns.

    python benchmarks/gpu_reroute.py            all shapes; some minutes
    python benchmarks/gpu_reroute.py --quick    two shapes
    python benchmarks/gpu_reroute.py --threads  one shape with 128 to 1024 threads a block

Variants: ``cuda`` (one launch), ``served`` (the same as an engine calls it: budgets, counters, distinct slots
filled up), ``torch`` (tensor operations), ``five`` (the published form: zero, cast, scatter, serial search,
cast) and ``nothing`` (an empty kernel: what a launch costs in a graph). Each replay runs through rotating
batches and layers; they all fit a large GPU's L2 cache, so these figures are of warm memory. ``cold`` and
``nothing cold`` are ``cuda`` and ``nothing`` after a buffer of twice the L2 cache has been filled, less the
time of the filling alone in the same turn: in a served model the experts' weights push everything out between
two layers. Before a shape is timed the variants must agree; one JSON line a row goes to ``--out``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from sere.config import RerouteConfig
from sere.files import append_json_line
from sere.provenance import installed_version, provenance
from sere.reroute import COUNTERS, PreparedLayer, TokenBatch, prepare_layer
from sere.reroute.backends.cuda import device as launching
from sere.reroute.backends.cuda.launch import Launch
from sere.similarity.layer import LayerSimilarity

SHAPES = [
    ("Mixtral-8x7B", 8, 2),
    ("Qwen1.5-MoE-A2.7B", 60, 4),
    ("DeepSeek-V2-Lite", 64, 6),
    ("Qwen3-30B-A3B", 128, 8),
    ("DeepSeek-V3", 256, 8),
    ("Qwen3-Next-80B-A3B", 512, 10),
]
ROWS = (1, 4, 16, 64, 256, 1024)
# Microseconds that the kernel is meant to stay under on an H100: (T, E, K).
TARGETS = {(64, 128, 8): 3.0, (256, 256, 8): 5.0}
LAYERS, BATCHES, ROUNDS, THRESHOLD = 8, 8, 30, 0.5
DEVICE = "cuda"
# How many steps a graph holds: the torch backend has some sixty launches a step.
STEPS = {
    "cuda": 256, "served": 256, "five": 128, "nothing": 256, "torch": 16, "cold": 32, "nothing cold": 32,
    "fill": 32,
}  # fmt: skip
COLD = ("cold", "nothing cold")
THREADS = (128, 256, 512, 1024)
SUMMARY = ("median", "p20", "p80")
SPIN_SECONDS = 0.3
# Clock ticks that the device waits before a replay, half a millisecond: by then all of it is handed over.
HEAD_START = 1_000_000
RESULTS = Path(__file__).parent / "results" / "gpu_reroute.jsonl"
Step = Callable[[int], Any]


@dataclass(frozen=True)
class Work:
    """The batches and layers of one shape, on the device; ``budget`` and ``counters`` are for ``served``."""

    ids: list[Tensor]
    weights: list[Tensor]
    similarity: list[Tensor]
    prepared: dict[str, list[PreparedLayer]]
    budget: Tensor
    counters: Tensor


def make_work(T: int, E: int, K: int) -> Work:
    """Return rotating batches (int32, float32, slots by weight) and layers; some experts are popular."""
    generator = torch.Generator().manual_seed(T * E + K)
    similarity = [torch.rand(E, E, generator=generator).fill_diagonal_(1.0) for _ in range(LAYERS)]
    popular = torch.randn(E, generator=generator)
    logits = torch.randn(BATCHES, T, E, generator=generator) + popular
    pairs = [tuple(row.softmax(dim=1).topk(K, dim=1)) for row in logits]
    settings: dict[str, dict[str, Any]] = {
        "cuda": {"backend": "cuda"},
        "served": {"backend": "cuda", "merge": "distinct", "min_active": K},
        "served torch": {"backend": "torch", "merge": "distinct", "min_active": K},
        "torch": {"backend": "torch"},
    }
    prepared = {
        name: [
            prepare_layer(
                LayerSimilarity(matrix),
                RerouteConfig.from_mapping({"select_top_k": 1, "threshold": THRESHOLD} | changes),
                device=DEVICE,
            )
            for matrix in similarity
        ]
        for name, changes in settings.items()
    }
    return Work(
        [ids.int().to(DEVICE) for _, ids in pairs],
        [weights.to(DEVICE) for weights, _ in pairs],
        [matrix.to(DEVICE) for matrix in similarity],
        prepared,
        torch.ones(T, dtype=torch.int32, device=DEVICE),
        torch.zeros(len(COUNTERS), dtype=torch.int64, device=DEVICE),
    )


class Baseline:
    """The two kernels of ``baseline.cu``, compiled for the device at hand."""

    def __init__(self) -> None:
        from cuda.core import Device, Program, ProgramOptions

        major, minor = torch.cuda.get_device_capability()
        Device(torch.cuda.current_device()).set_current()
        source = Path(__file__).with_name("baseline.cu").read_text(encoding="utf-8")
        options = ProgramOptions(arch=f"sm_{major}{minor}", std="c++17")
        code = Program(source, "c++", options).compile("cubin")
        self.search, self.empty = code.get_kernel("serial_search"), code.get_kernel("nothing")

    def five_launches(self, ids: Tensor, similarity: Tensor, S: int) -> Tensor:
        """Zero, cast, scatter, serial search, cast back."""
        E = len(similarity)
        primary = torch.zeros(E, dtype=torch.bool, device=ids.device)
        wide = ids.long()
        primary.index_fill_(0, wide[:, :S].reshape(-1), True)
        found = torch.empty_like(wide)
        blocks = -(-ids.numel() // 256)
        kernel_args = (
            wide.data_ptr(),
            primary.data_ptr(),
            similarity.data_ptr(),
            found.data_ptr(),
            ids.numel(),
            E,
        )
        self._put(self.search, blocks, 256, *kernel_args, THRESHOLD)
        return found.int()

    def nothing(self) -> None:
        """One empty launch."""
        self._put(self.empty, 1, 32)

    @staticmethod
    def _put(kernel: Any, blocks: int, threads: int, *kernel_args: Any) -> None:
        from cuda.core import LaunchConfig, launch

        from sere.reroute.backends.cuda.device import stream_of

        stream = stream_of(torch.cuda.current_stream().cuda_stream)
        launch(stream, LaunchConfig(grid=blocks, block=threads), kernel, *kernel_args)


def spare_buffer() -> Tensor:
    """Return a buffer of twice the device's L2 cache."""
    size = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 * 2**20)
    return torch.empty(2 * int(size), dtype=torch.uint8, device=DEVICE)


def make_steps(work: Work, baseline: Baseline, spare: Tensor) -> dict[str, Step]:
    """Return the variants; each takes the number of the step and uses that step's batch and layer."""

    def routed(backend: str) -> Step:
        prepared = work.prepared[backend]
        return lambda i: prepared[i % LAYERS].route(
            TokenBatch(work.ids[i % BATCHES], work.weights[i % BATCHES])
        )

    def after_filling(step: Step) -> Step:
        return lambda i: (spare.fill_(1), step(i))[1]

    steps: dict[str, Step] = {
        "cuda": routed("cuda"),
        "served": served(work, "served"),
        "five": lambda i: baseline.five_launches(work.ids[i % BATCHES], work.similarity[i % LAYERS], 1),
        "torch": routed("torch"),
        "nothing": lambda _: baseline.nothing(),
    }
    cold = {"cold": after_filling(steps["cuda"]), "nothing cold": after_filling(steps["nothing"])}
    return steps | cold | {"fill": after_filling(lambda _: None)}


def served(work: Work, name: str) -> Step:
    """Return the step as an engine calls it: a budget for each row, counters, and the layer's settings."""
    prepared = work.prepared[name]
    return lambda i: prepared[i % LAYERS].route(
        TokenBatch(work.ids[i % BATCHES], work.weights[i % BATCHES], work.budget), work.counters
    )


def check(steps: dict[str, Step], work: Work) -> None:
    """Stop unless all variants give the same ids for every batch and layer."""
    served_torch = served(work, "served torch")
    for i in range(max(LAYERS, BATCHES)):
        ours, theirs = steps["cuda"](i).ids, steps["torch"](i).ids
        same = torch.equal(ours, theirs) and torch.equal(ours, steps["five"](i))
        if not same or not torch.equal(steps["served"](i).ids, served_torch(i).ids):
            raise SystemExit("the variants disagree: run make gpu-test, nothing is timed")


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
    """Return microseconds a step, per variant, of each round after two that warm up; turns are shuffled."""
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    turns = random.Random(0)
    for turn in range(rounds + 2):
        for name in turns.sample([*graphs], len(graphs)):
            start, end = _event(), _event()
            torch.cuda._sleep(HEAD_START)  # type: ignore[no-untyped-call]
            start.record()
            graphs[name].replay()
            end.record()
            end.synchronize()
            if turn >= 2:
                samples[name].append(start.elapsed_time(end) * 1e3 / steps[name])
    return samples


def without_filling(samples: dict[str, list[float]]) -> dict[str, list[float]]:
    """Take the time of the filling off the cold variants, turn by turn."""
    fill = samples["fill"]
    return {
        name: [a - b for a, b in zip(values, fill, strict=True)] if name in COLD else values
        for name, values in samples.items()
    }


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def measure(T: int, E: int, K: int, baseline: Baseline) -> dict[str, dict[str, float]]:
    """Return median, p20 and p80 of each variant, in microseconds a step."""
    work = make_work(T, E, K)
    steps = make_steps(work, baseline, spare_buffer())
    check(steps, work)
    graphs = {name: capture(steps[name], STEPS[name]) for name in steps}
    return summaries(without_filling(time_in_turns(graphs, STEPS, ROUNDS)))


def summaries(samples: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return median, p20 and p80 of each variant."""
    result = {}
    for name, values in samples.items():
        tenths = statistics.quantiles(values, n=10)
        result[name] = {"median": statistics.median(values), "p20": tenths[1], "p80": tenths[7]}
    return result


def with_threads(threads: int, step: Step) -> Step:
    """Return a step whose launches have another number of threads in each block."""
    real = launching.launch

    def changed(call: Launch, device: torch.device) -> None:
        real(call._replace(threads=threads), device)

    def run(i: int) -> Any:
        launching.launch = changed
        try:
            return step(i)
        finally:
            launching.launch = real

    return run


def sweep_threads(T: int, E: int, K: int, baseline: Baseline) -> dict[str, dict[str, float]]:
    """Return ``measure``'s figures of the cuda variant for each number of threads."""
    work = make_work(T, E, K)
    steps = make_steps(work, baseline, spare_buffer())
    check(steps, work)
    variants = {str(threads): with_threads(threads, steps["cuda"]) for threads in THREADS}
    for variant in variants.values():
        if not torch.equal(variant(0).ids, steps["torch"](0).ids):
            raise SystemExit("a number of threads changes the result: run make gpu-test, nothing is timed")
    graphs = {name: capture(step, STEPS["cuda"]) for name, step in variants.items()}
    return summaries(time_in_turns(graphs, dict.fromkeys(graphs, STEPS["cuda"]), ROUNDS))


def row_of(model: str, T: int, E: int, K: int, result: dict[str, dict[str, float]]) -> list[Any]:
    """Return the table's row: times, how many times faster, and whether the target is met."""
    ours = result["cuda"]["median"]
    target = TARGETS.get((T, E, K))
    verdict = "" if target is None else f"{'met' if ours <= target else 'MISSED'} ({target})"
    others = [result[name]["median"] for name in ("five", "torch", "nothing", "served", *COLD)]
    return [
        model, E, K, T, ours, result["cuda"]["p20"], result["cuda"]["p80"], *others, others[0] / ours, verdict
    ]  # fmt: skip


def record(out: Path, name: str, shape: tuple[int, int, int], clock: str | None, result: Any) -> None:
    """Append one shape's figures to ``out``."""
    T, E, K = shape
    config = {"model": name, "T": T, "E": E, "K": K, "select_top_k": 1, "threshold": THRESHOLD}
    config |= {"memory": "warm, but for the cold variants", "sm_clock": clock}
    line = {"benchmark": "gpu_reroute", "unit": "us_per_step", "variants": result, "config": config}
    append_json_line(out, {**line, **provenance(), "gpu_versions": gpu_versions()})


def main() -> None:
    """Check, time, write one record a shape and print the table last."""
    parser = argparse.ArgumentParser(description="Time re-routing on a GPU.")
    parser.add_argument("--quick", action="store_true", help="two shapes only")
    parser.add_argument("--threads", action="store_true", help="128 to 1024 threads at T=64, E=128, no more")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    reason = launching.why_not()
    if reason is not None:
        raise SystemExit(f"nothing to time: {reason}")
    baseline, rows = Baseline(), []
    if arguments.threads:
        name, E, K = SHAPES[3]
        clock, result = spin(), sweep_threads(64, E, K, baseline)
        record(arguments.out, f"{name}, threads", (64, E, K), clock, result)
        print(torch.cuda.get_device_name(), "T=64, microseconds a step, warm memory, clock", clock)
        print(tabulate([[key, *value.values()] for key, value in result.items()], ["threads", *SUMMARY]))
        return
    for name, E, K in [SHAPES[3]] if arguments.quick else SHAPES:
        for T in (16, 64) if arguments.quick else ROWS:
            clock, result = spin(), measure(T, E, K, baseline)
            record(arguments.out, name, (T, E, K), clock, result)
            rows.append(row_of(name, T, E, K, result))
    headers = [
        "shape", "E", "K", "T", "cuda us", "p20", "p80", "five", "torch", "nothing", "served", *COLD,
        "five/cuda", "target",
    ]  # fmt: skip
    print(torch.cuda.get_device_name(), "microseconds a step, warm memory but for the cold ones")
    print(tabulate(rows, headers, floatfmt=".2f"))


if __name__ == "__main__":
    main()
