"""Time one call of re-routing as an engine makes it, with a prepared layer: checks, backend and result.

Run ``python benchmarks/reroute.py``. The backends are first compared with each other, then timed in turns
in one run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from sere.config import Backend, RerouteConfig
from sere.files import append_json_line
from sere.provenance import provenance
from sere.reroute import Routing, TokenBatch, prepare_layer
from sere.similarity.layer import LayerSimilarity

# (model, E, K): the shapes that people serve.
SHAPES = [
    ("Mixtral-8x7B", 8, 2),
    ("Qwen1.5-MoE-A2.7B", 60, 4),
    ("DeepSeek-V2-Lite", 64, 6),
    ("Qwen3-30B-A3B", 128, 8),
    ("DeepSeek-V3", 256, 8),
]
ROWS = (1, 16, 64, 256)
BACKENDS: tuple[Backend, ...] = ("cpu", "torch")
Call = Callable[[TokenBatch], Routing]
DEFAULT_OUT = Path("benchmarks/results/reroute.jsonl")


def make_batch(T: int, K: int, E: int) -> TokenBatch:
    """Return ids (int32) and weights (float32) of a router that likes some experts more than others."""
    generator = torch.Generator().manual_seed(T * E + K)
    logits = torch.randn(T, E, generator=generator) + torch.randn(E, generator=generator)
    weights, ids = logits.softmax(dim=1).topk(K, dim=1)
    return TokenBatch(ids.int(), weights)


def make_calls(E: int, settings: dict[str, Any]) -> dict[str, Call]:
    """Return the call of one prepared random layer, for every backend."""
    similarity = torch.rand(E, E, generator=torch.Generator().manual_seed(E)).fill_diagonal_(1.0)
    layer = LayerSimilarity(similarity)
    return {
        backend: prepare_layer(layer, RerouteConfig(backend=backend, **settings)).route
        for backend in BACKENDS
    }


def time_in_turns(calls: dict[str, Call], batch: TokenBatch, rounds: int) -> dict[str, list[float]]:
    """Return microseconds per call; backends take turns of ten calls."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(10):
                call(batch)
            if turn >= 2:
                samples[name].append((time.perf_counter() - start) * 1e5)
    return samples


def check(calls: dict[str, Call], batch: TokenBatch) -> None:
    """Stop unless all backends agree on this batch."""
    results = [call(batch) for call in calls.values()]
    if any(not torch.equal(result.ids, results[0].ids) for result in results):
        raise SystemExit("the backends disagree: run the tests, nothing is timed")


def main() -> None:
    """Check, time, print a table and write one record a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small shape, few rounds: only that it runs")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    rounds = 5 if arguments.quick else 200
    shapes = SHAPES[:1] if arguments.quick else SHAPES
    rows = []
    for model, E, K in shapes:
        for settings in ({"select_top_k": 1}, {"select_top_k": 2, "threshold": 0.5}):
            calls = make_calls(E, settings)
            for T in ROWS:
                batch = make_batch(T, K, E)
                check(calls, batch)
                for backend, samples in time_in_turns(calls, batch, rounds).items():
                    p20, median, p80 = (statistics.quantiles(samples, n=10)[i] for i in (1, 4, 7))
                    config = {"model": model, "T": T, "K": K, "E": E, "backend": backend, **settings}
                    record = {
                        "benchmark": "reroute",
                        "unit": "us_per_call",
                        "median": median,
                        "p20": p20,
                        "p80": p80,
                    }
                    append_json_line(arguments.out, {**record, "config": config, **provenance()})
                    rows.append([model, E, K, T, settings["select_top_k"], backend, median, p20, p80])
    headers = ["shape", "E", "K", "T", "S", "backend", "median us", "p20", "p80"]
    print(tabulate(rows, headers, floatfmt=".1f"))


if __name__ == "__main__":
    main()
