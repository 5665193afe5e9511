"""Time one call of re-routing as an engine makes it: checks, backend and result.

Run ``python benchmarks/reroute.py``. Every backend is first compared with the plain loops, bit by bit; if one
differs, nothing is timed. Then the backends take turns in one run, on a layer that was prepared before. The
layer has factors, which the published method does not use, and each call adds to the layer's counters.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from reroute_shapes import SHAPES, make_batches, make_similarities
from sere.bench.timing import spread
from sere.config import RerouteConfig
from sere.files import append_json_line
from sere.provenance import provenance
from sere.reroute import COUNTERS, PreparedLayer, TokenBatch, prepare_layer
from sere.similarity.layer import LayerSimilarity

# A call for no rows is what a call takes beside its loop.
ROWS = (0, 1, 16, 64, 256)
BACKENDS = ("cpu", "torch")
REFERENCE = "reference"
# The published method, the default, and a number that a person gives.
SETTINGS: Mapping[str, dict[str, Any]] = {
    "sere:paper,select_top_k=1": {"preset": "paper", "select_top_k": 1},
    "sere": {},
    "sere:active_experts=32": {"active_experts": 32},
}
# Calls of a turn, and turns that warm up.
CALLS, WARM_UP = 10, 2
DEFAULT_OUT = Path("benchmarks/results/reroute.jsonl")


def prepare(E: int, K: int, settings: dict[str, Any]) -> dict[str, PreparedLayer]:
    """Return one random layer, prepared for the plain loops and for every backend that is timed."""
    (similarity,) = make_similarities(1, E)
    # Calibrated tables have sensitivities, which the sums are multiplied by.
    layer = LayerSimilarity(similarity, sensitivity=similarity[0].clamp(min=0.01))
    configs = {
        backend: RerouteConfig.from_mapping(settings | {"backend": backend})
        for backend in (REFERENCE, *BACKENDS)
    }
    return {
        backend: prepare_layer(
            layer, config, top_k=K, scale=None if config.use_scale is False else similarity.sqrt()
        )
        for backend, config in configs.items()
    }


def check(layers: dict[str, PreparedLayer], batch: TokenBatch) -> None:
    """Stop unless every backend gives the ids and the weights of the plain loops.

    Raises:
        SystemExit: A backend differs.
    """
    expected = layers[REFERENCE].route(batch)
    for backend in BACKENDS:
        found = layers[backend].route(batch)
        if not (torch.equal(found.ids, expected.ids) and torch.equal(found.weights, expected.weights)):
            raise SystemExit(f"{backend} differs from the plain loops: run make test; nothing is timed")


def time_in_turns(layers: dict[str, PreparedLayer], batch: TokenBatch, rounds: int) -> dict[str, list[float]]:
    """Return microseconds per call; the backends take turns, ten calls per turn."""
    samples: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64)
    for turn in range(rounds + WARM_UP):
        for backend, taken in samples.items():
            route = layers[backend].route
            started = time.perf_counter()
            for _ in range(CALLS):
                route(batch, counters)
            if turn >= WARM_UP:
                taken.append((time.perf_counter() - started) * 1e6 / CALLS)
    return samples


def main() -> None:
    """Check, time, print a table and write one record per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small shape, few rounds: only that it runs")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    rounds, shapes = (5, SHAPES[:1]) if arguments.quick else (200, SHAPES[:5])
    rows = []
    for model, E, K in shapes:
        for label, settings in SETTINGS.items():
            layers = prepare(E, K, settings)
            for T in ROWS:
                batch = TokenBatch(*make_batches(1, T, E, K)[0])
                check(layers, batch)
                for backend, samples in time_in_turns(layers, batch, rounds).items():
                    found = spread(samples)
                    config = {"model": model, "T": T, "K": K, "E": E, "backend": backend, "settings": label}
                    line = {"benchmark": "reroute", "unit": "us_per_call", "median": found.p50}
                    line |= {"p20": found.p20, "p80": found.p80, "config": config}
                    append_json_line(arguments.out, {**line, **provenance()})
                    rows.append([model, E, K, T, label, backend, found.p50, found.p20, found.p80])
    headers = ["shape", "E", "K", "T", "settings", "backend", "median, µs per call", "p20", "p80"]
    print(tabulate(rows, headers, floatfmt=".1f"))


if __name__ == "__main__":
    main()
