"""Similarity accumulators on a GPU: compared with the CPU's results, and timed.

    python benchmarks/gpu_similarity.py            agreement, then times; some minutes
    python benchmarks/gpu_similarity.py --quick    a few tokens only
    python benchmarks/gpu_similarity.py --rehearse tiny, on the CPU

Agreement: the same outputs on both devices, largest difference of any similarity. Times: one layer of
Qwen3-30B-A3B's shape (E = 128, H = 2048) in bfloat16 at 51,200 tokens, fed as calibration feeds it. Outputs
are random and rotate; making them is not timed. One JSON line a metric goes to ``--out``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from sere.bench.timing import synchronize
from sere.files import append_json_line
from sere.provenance import provenance
from sere.similarity import make_accumulator

METRICS = ("frobenius", "cosine", "cka_linear", "projection")
E, H, K, TOKENS = 128, 2048, 8, 51_200
CHUNK, PIECES = 512, 4
RESULTS = Path(__file__).parent / "results" / "gpu_similarity.jsonl"
Piece = tuple[Tensor, Tensor, Tensor]


def make_pieces(E: int, H: int, tokens: int, count: int) -> list[Piece]:
    """Return outputs ``[E, tokens, H]`` in bfloat16 with a common part, and a routing, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    pieces = []
    for _ in range(count):
        common = torch.randn(tokens, H, generator=generator)
        outputs = torch.stack([torch.randn(tokens, H, generator=generator) + common for _ in range(E)])
        weights, ids = torch.rand(tokens, E, generator=generator).topk(K)
        pieces.append((outputs.bfloat16(), ids, weights / weights.sum(dim=1, keepdim=True)))
    return pieces


def accumulate(metric: str, pieces: list[Piece], tokens: int) -> Tensor:
    """Feed pieces in turn until ``tokens`` were taken; return the similarities on the CPU."""
    accumulator = make_accumulator(metric, pieces[0][0].shape[0])
    for turn in range(max(1, tokens // pieces[0][0].shape[1])):
        accumulator.update(*pieces[turn % len(pieces)])
    return accumulator.finalize().similarity.cpu()


def on_device(pieces: list[Piece]) -> list[Piece]:
    """Return the pieces on the GPU, if there is one."""
    if not torch.cuda.is_available():
        return pieces
    return [(outputs.cuda(), ids.cuda(), weights.cuda()) for outputs, ids, weights in pieces]


def seconds(metric: str, pieces: list[Piece], tokens: int, rounds: int) -> list[float]:
    """Return the seconds per layer of each round, after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        synchronize(pieces[0][0].device)
        started = time.perf_counter()
        accumulate(metric, pieces, tokens)
        synchronize(pieces[0][0].device)
        times.append(time.perf_counter() - started)
    return times[1:]


def main() -> None:
    """Compare, time, write one record per metric and print the table last."""
    parser = argparse.ArgumentParser(description="Similarity accumulators on a GPU.")
    parser.add_argument("--quick", action="store_true", help="a few tokens only")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rehearse: bool = arguments.rehearse
    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: nothing to time")
    tokens, rounds = (2 * CHUNK, 2) if arguments.quick or rehearse else (TOKENS, 5)
    size = (8, 64) if rehearse else (E, H)
    small, large = make_pieces(32, 256, CHUNK, 2), on_device(make_pieces(*size, CHUNK, PIECES))
    rows = []
    for metric in METRICS:
        expected, got = (accumulate(metric, pieces, 2 * CHUNK) for pieces in (small, on_device(small)))
        error = float((expected - got).abs().max())
        times = seconds(metric, large, tokens, rounds)
        record: dict[str, Any] = {
            "benchmark": "gpu_similarity", "unit": "s_per_layer", "metric": metric,
            "E": size[0], "H": size[1],
            "tokens": tokens, "median": statistics.median(times), "least": min(times), "most": max(times),
            "max_abs_error_to_cpu": error,
        }  # fmt: skip
        append_json_line(arguments.out, {**record, **provenance()})
        rows.append([metric, tokens, record["median"], record["least"], record["most"], f"{error:.1e}"])
    print("no GPU: the numbers mean nothing" if rehearse else torch.cuda.get_device_name())
    print(
        tabulate(
            rows,
            ["metric", "tokens", "s per layer", "least", "most", "difference to the CPU"],
            floatfmt=".3f",
        )
    )


if __name__ == "__main__":
    main()
