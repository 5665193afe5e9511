"""Time the similarity accumulators against a plain loop over pairs of experts, on the same outputs.

    python benchmarks/similarity.py            all cases; a few minutes on two cores
    python benchmarks/similarity.py --quick    one small case per metric; seconds

Both sides take the same float32 outputs ``[E, T, H]``, run in turns, and must agree. One JSON line per case
goes to ``benchmarks/results/similarity.jsonl``. The loop is what a straightforward implementation does, and
what the published code does: the metric as a function of two experts' outputs on all tokens, called once for
every pair. It stays in float32 like the accumulators.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sere.files import append_json_line
from sere.provenance import provenance
from sere.similarity import make_accumulator

RESULTS = Path(__file__).parent / "results" / "similarity.jsonl"
CHUNK = 128  # tokens per update, as calibration feeds them: one sequence
WINDOW = 128
AGREEMENT = 2e-5


@dataclass(frozen=True)
class Case:
    """One measurement: a metric, the outputs' shape and how often both sides run."""

    metric: str
    E: int
    T: int
    H: int
    rounds: int


METRICS = ("frobenius", "cosine", "cka_linear", "projection")
QUICK = [Case(metric, 16, 256, 64, 3) for metric in METRICS]
FULL = [
    Case("frobenius", 64, 512, 2048, 5),
    Case("frobenius", 64, 2048, 2048, 1),
    Case("frobenius", 128, 2048, 2048, 1),
    Case("cosine", 64, 2048, 2048, 1),
    Case("cosine", 128, 2048, 2048, 1),
    Case("cka_linear", 64, 512, 1024, 1),
    Case("cka_linear", 128, 512, 1024, 1),
    Case("projection", 64, 512, 1024, 3),
    Case("projection", 128, 512, 1024, 3),
]


def frobenius_loop(Y: Tensor, *_routing: Tensor) -> Tensor:
    """``1 - D_ij / max(D)``, one pair of experts at a time."""
    distance = _by_pairs(Y, lambda a, b: torch.linalg.vector_norm(a - b), 0)
    return 1 - distance / distance.max()


def cosine_loop(Y: Tensor, *_routing: Tensor) -> Tensor:
    """``(1 + mean cos) / 2``, one pair of experts at a time."""
    return _by_pairs(Y, lambda a, b: (1 + torch.nn.functional.cosine_similarity(a, b, dim=1).mean()) / 2, 1)


def cka_linear_loop(Y: Tensor, *_routing: Tensor) -> Tensor:
    """Linear CKA over windows, one pair of experts at a time."""
    return _by_pairs(Y, _cka_linear, 1)


def projection_loop(Y: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """The share that one scalar explains on the routed tokens, one directed pair of experts at a time."""
    similarity = torch.eye(len(Y))
    squared = Y.square().sum(dim=2)
    for e in range(len(Y)):
        gate = (weights * (ids == e)).sum(dim=1)
        own = (gate * squared[e]).sum()
        for p in range(len(Y)):
            common = (gate * (Y[e] * Y[p]).sum(dim=1)).sum()
            energy = (gate * squared[p]).sum()
            if e != p and common > 0:
                similarity[e, p] = common**2 / (energy * own)
    return similarity


LOOPS: dict[str, Callable[..., Tensor]] = {
    "frobenius": frobenius_loop,
    "cosine": cosine_loop,
    "cka_linear": cka_linear_loop,
    "projection": projection_loop,
}


def accumulated(metric: str, Y: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Our result for the same outputs, fed in chunks."""
    parameters: dict[str, Any] = {"window": WINDOW} if "cka" in metric else {}
    accumulator = make_accumulator(metric, len(Y), **parameters)
    for start in range(0, Y.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        accumulator.update(Y[:, part], ids[part], weights[part])
    return accumulator.finalize().similarity


def measure(case: Case) -> dict[str, Any]:
    """Run both sides in turns and return one record; the first round of each is a warm-up."""
    Y, ids, weights = outputs(case)
    flat = Y.flatten(1)
    times: dict[str, list[float]] = {"pair_loop": [], "accumulator": [], "gram": []}
    error = 0.0
    for _ in range(case.rounds + 1):
        expected, loop = _timed(lambda: LOOPS[case.metric](Y, ids, weights))
        got, ours = _timed(lambda: accumulated(case.metric, Y, ids, weights))
        # The one product that a Gram form cannot do without: the floor of frobenius and cosine.
        _, gram = _timed(lambda: flat @ flat.T)
        error = max(error, float((expected - got).abs().max()))
        for name, value in zip(times, (loop, ours, gram), strict=True):
            times[name].append(value)
    record: dict[str, Any] = {"benchmark": "similarity", **asdict(case), "unit": "ms"}
    for name, values in times.items():
        kept = values[1:]
        record[f"{name}_ms"] = {"median": statistics.median(kept), "least": min(kept), "most": max(kept)}
    record["ratio"] = record["pair_loop_ms"]["median"] / record["accumulator_ms"]["median"]
    return record | {"max_abs_error": error, "provenance": provenance()}


def outputs(case: Case, K: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded outputs with a common part, and a routing of ``K`` experts per token."""
    torch.manual_seed(0)
    Y = torch.randn(case.E, case.T, case.H) + torch.randn(case.T, case.H)
    weights, ids = torch.rand(case.T, case.E).topk(K)
    return Y, ids, weights / weights.sum(dim=1, keepdim=True)


def main() -> int:
    """Run all cases; 1 where both sides disagree."""
    parser = argparse.ArgumentParser(description="Time similarity accumulators against a loop over pairs.")
    parser.add_argument("--quick", action="store_true", help="one small case per metric; writes no record")
    parser.add_argument("--metric", nargs="+", choices=METRICS, default=METRICS, help="(default: all)")
    args = parser.parse_args()
    quick, wrong = args.quick, 0
    for case in (case for case in (QUICK if quick else FULL) if case.metric in args.metric):
        record = measure(case)
        agree = record["max_abs_error"] <= AGREEMENT
        wrong += not agree
        print(
            f"{case.metric:<11} E={case.E:<4} T={case.T:<5} H={case.H:<5} "
            f"loop {record['pair_loop_ms']['median']:9.1f} ms   "
            f"ours {record['accumulator_ms']['median']:8.1f} ms   {record['ratio']:6.1f}x   "
            f"Gram product alone {record['gram_ms']['median']:7.1f} ms   "
            f"max abs error {record['max_abs_error']:.1e}{'' if agree else '   DISAGREE'}",
            flush=True,
        )
        if not quick and agree:
            append_json_line(RESULTS, record)
    return 1 if wrong else 0


def _timed(function: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    result = function()
    return result, (time.perf_counter() - start) * 1000


def _by_pairs(Y: Tensor, compare: Callable[[Tensor, Tensor], Tensor], diagonal: float) -> Tensor:
    result = torch.full((len(Y), len(Y)), float(diagonal))
    for i, j in combinations(range(len(Y)), 2):
        result[i, j] = result[j, i] = compare(Y[i], Y[j])
    return result


def _cka_linear(a: Tensor, b: Tensor) -> Tensor:
    first, second = ([_centered_kernel(part) for part in torch.split(rows, WINDOW)] for rows in (a, b))
    return (_hsic(first, second) / (_hsic(first, first) * _hsic(second, second)).sqrt()).clamp(0, 1)


def _centered_kernel(rows: Tensor) -> Tensor:
    centered = rows - rows.mean(dim=0)
    return centered @ centered.T


def _hsic(first: list[Tensor], second: list[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()


if __name__ == "__main__":
    sys.exit(main())
