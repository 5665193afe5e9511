"""Time one re-routing step on a GPU: graph replays of many launches, variants in turns.

    python benchmarks/gpu_reroute.py            all shapes; some minutes
    python benchmarks/gpu_reroute.py --quick    two shapes

Variants: ``cuda`` (one launch), ``torch`` (tensor operations), ``five`` (the published form: zero, cast,
scatter, serial search, cast) and ``nothing`` (an empty kernel: what a launch costs in a graph). Each replay
runs through rotating batches and layers. Before a shape is timed the variants must agree; one JSON line a
row goes to ``--out``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from sere.config import RerouteConfig
from sere.files import append_json_line
from sere.provenance import provenance
from sere.reroute import Plan, make_plan
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
STEPS = {"cuda": 256, "five": 128, "nothing": 256, "torch": 16}
RESULTS = Path(__file__).parent / "results" / "gpu_reroute.jsonl"
Step = Callable[[int], Any]


@dataclass(frozen=True)
class Work:
    """The batches and layers of one shape, on the device."""

    ids: list[Tensor]
    weights: list[Tensor]
    similarity: list[Tensor]
    plans: dict[str, list[Plan]]


def make_work(T: int, E: int, K: int) -> Work:
    """Return rotating batches (int32, float32, slots by weight) and layers; some experts are popular."""
    generator = torch.Generator().manual_seed(T * E + K)
    similarity = [torch.rand(E, E, generator=generator).fill_diagonal_(1.0) for _ in range(LAYERS)]
    popular = torch.randn(E, generator=generator)
    logits = torch.randn(BATCHES, T, E, generator=generator) + popular
    pairs = [tuple(row.softmax(dim=1).topk(K, dim=1)) for row in logits]
    plans = {
        backend: [
            make_plan(
                LayerSimilarity(matrix),
                RerouteConfig.from_mapping({"select_top_k": 1, "threshold": THRESHOLD, "backend": backend}),
                device=DEVICE,
            )
            for matrix in similarity
        ]
        for backend in ("cuda", "torch")
    }
    return Work(
        [ids.int().to(DEVICE) for _, ids in pairs],
        [weights.to(DEVICE) for weights, _ in pairs],
        [matrix.to(DEVICE) for matrix in similarity],
        plans,
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
        words = (wide.data_ptr(), primary.data_ptr(), similarity.data_ptr(), found.data_ptr(), ids.numel(), E)
        self._put(self.search, blocks, 256, *words, THRESHOLD)
        return found.int()

    def nothing(self) -> None:
        """One empty launch."""
        self._put(self.empty, 1, 32)

    @staticmethod
    def _put(kernel: Any, blocks: int, threads: int, *words: Any) -> None:
        from cuda.core import LaunchConfig, launch

        from sere.reroute.cuda.device import stream_of

        stream = stream_of(torch.cuda.current_stream().cuda_stream)
        launch(stream, LaunchConfig(grid=blocks, block=threads), kernel, *words)


def make_steps(work: Work, baseline: Baseline) -> dict[str, Step]:
    """Return the variants; each takes the number of the step and uses that step's batch and layer."""

    def planned(backend: str) -> Step:
        plans = work.plans[backend]
        return lambda i: plans[i % LAYERS].route(work.ids[i % BATCHES], work.weights[i % BATCHES])

    return {
        "cuda": planned("cuda"),
        "five": lambda i: baseline.five_launches(work.ids[i % BATCHES], work.similarity[i % LAYERS], 1),
        "torch": planned("torch"),
        "nothing": lambda _: baseline.nothing(),
    }


def check(steps: dict[str, Step]) -> None:
    """Stop unless all variants give the same ids for every batch and layer."""
    for i in range(max(LAYERS, BATCHES)):
        ours, theirs = steps["cuda"](i).ids, steps["torch"](i).ids
        if not torch.equal(ours, theirs) or not torch.equal(ours, steps["five"](i)):
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


def time_in_turns(graphs: dict[str, torch.cuda.CUDAGraph], rounds: int) -> dict[str, list[float]]:
    """Return microseconds a step, per variant, of each round after two that warm up."""
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(rounds + 2):
        for name, graph in graphs.items():
            start, end = _event(), _event()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 2:
                samples[name].append(start.elapsed_time(end) * 1e3 / STEPS[name])
    return samples


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def measure(T: int, E: int, K: int, baseline: Baseline) -> dict[str, dict[str, float]]:
    """Return median, p20 and p80 of each variant, in microseconds a step."""
    steps = make_steps(make_work(T, E, K), baseline)
    check(steps)
    samples = time_in_turns({name: capture(step, STEPS[name]) for name, step in steps.items()}, ROUNDS)
    result = {}
    for name, values in samples.items():
        tenths = statistics.quantiles(values, n=10)
        result[name] = {"median": statistics.median(values), "p20": tenths[1], "p80": tenths[7]}
    return result


def row_of(name: str, T: int, E: int, K: int, result: dict[str, dict[str, float]]) -> list[Any]:
    """Return the table's row: times, how many times faster, and whether the target is met."""
    ours = result["cuda"]["median"]
    target = TARGETS.get((T, E, K))
    verdict = "" if target is None else f"{'met' if ours <= target else 'MISSED'} ({target})"
    others = [result[variant]["median"] for variant in ("five", "torch", "nothing")]
    return [
        name, E, K, T, ours, result["cuda"]["p20"], result["cuda"]["p80"], *others, others[0] / ours, verdict
    ]  # fmt: skip


def main() -> None:
    """Check, time, write one record a shape and print the table last."""
    parser = argparse.ArgumentParser(description="Time re-routing on a GPU.")
    parser.add_argument("--quick", action="store_true", help="two shapes only")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: nothing to time")
    baseline, rows = Baseline(), []
    for name, E, K in [SHAPES[3]] if arguments.quick else SHAPES:
        for T in (16, 64) if arguments.quick else ROWS:
            result = measure(T, E, K, baseline)
            config = {"model": name, "T": T, "E": E, "K": K, "select_top_k": 1, "threshold": THRESHOLD}
            record = {"benchmark": "gpu_reroute", "unit": "us_per_step", "variants": result, "config": config}
            append_json_line(arguments.out, {**record, **provenance()})
            rows.append(row_of(name, T, E, K, result))
    headers = [
        "shape", "E", "K", "T", "cuda us", "p20", "p80", "five", "torch", "nothing", "five/cuda", "target"
    ]  # fmt: skip
    print(torch.cuda.get_device_name())
    print(tabulate(rows, headers, floatfmt=".2f"))


if __name__ == "__main__":
    main()
