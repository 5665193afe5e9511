"""Time one re-routing step on a GPU: graph replays of many launches, variants in turns.

    python benchmarks/gpu_reroute.py            all shapes; some minutes
    python benchmarks/gpu_reroute.py --quick    two shapes
    python benchmarks/gpu_reroute.py --threads  one shape with 128 to 1024 threads per block

Variants: ``cuda`` (one launch), ``served`` (the same as an engine calls it: budgets, counters, P filled up to
the default M, distinct slots filled up), ``torch`` (tensor operations), ``five`` (the published form: zero,
cast, scatter, serial search, cast) and ``nothing`` (an empty kernel: what a launch costs in a graph). Each
replay runs through rotating batches and layers; they all fit a large GPU's L2 cache, so these figures are of
warm memory. ``cold`` and ``nothing cold`` are ``cuda`` and ``nothing`` after a buffer of twice the L2 cache
has been filled, less the time of the filling alone in the same turn: in a served model the experts' weights
push everything out between two layers. Before a shape is timed, every variant must give what the plain loops
give. One JSON line per row goes to ``--out``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from gpu_timing import capture, gpu_versions, spin, summaries, time_in_turns, without_filling
from gpu_variants import (
    COLD,
    PUBLISHED,
    SERVED,
    THRESHOLD,
    Baseline,
    check,
    check_threads,
    make_steps,
    make_work,
    spare_buffer,
    with_threads,
)
from reroute_shapes import SHAPES
from sere.files import append_json_line
from sere.provenance import provenance
from sere.reroute.backends.cuda import device as launching

ROWS = (1, 4, 16, 64, 256, 1024)
# Microseconds that the kernel is meant to stay under on an H100: (T, E, K).
TARGETS = {(64, 128, 8): 3.0, (256, 256, 8): 5.0}
ROUNDS = 30
# Steps per graph; the torch backend has some sixty launches per step.
STEPS = {
    "cuda": 256, "served": 256, "five": 128, "nothing": 256, "torch": 16, "cold": 32, "nothing cold": 32,
    "fill": 32,
}  # fmt: skip
THREADS = (128, 256, 512, 1024)
SUMMARY = ("median", "p20", "p80")
RESULTS = Path(__file__).parent / "results" / "gpu_reroute.jsonl"


def measure(T: int, E: int, K: int, baseline: Baseline) -> dict[str, dict[str, float]]:
    """Return median, p20 and p80 of each variant, in microseconds per step."""
    work = make_work(T, E, K)
    steps = make_steps(work, baseline, spare_buffer())
    check(steps, work)
    graphs = {name: capture(steps[name], STEPS[name]) for name in steps}
    return summaries(without_filling(time_in_turns(graphs, STEPS, ROUNDS)))


def sweep_threads(T: int, E: int, K: int, baseline: Baseline) -> dict[str, dict[str, float]]:
    """Return ``measure``'s figures of the cuda variant for each number of threads."""
    work = make_work(T, E, K)
    steps = make_steps(work, baseline, spare_buffer())
    check(steps, work)
    variants = {str(threads): with_threads(threads, steps["cuda"]) for threads in THREADS}
    check_threads(variants, work)
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
    config = {"model": name, "T": T, "E": E, "K": K, "threshold": THRESHOLD, **PUBLISHED, "served": SERVED}
    config |= {"memory": "warm, but for the cold variants", "sm_clock": clock}
    line = {"benchmark": "gpu_reroute", "unit": "us_per_step", "variants": result, "config": config}
    append_json_line(out, {**line, **provenance(), "gpu_versions": gpu_versions()})


def main() -> None:
    """Check, time, write one record per shape and print the table last."""
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
        print(torch.cuda.get_device_name(), "T=64, microseconds per step, warm memory, clock", clock)
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
    print(torch.cuda.get_device_name(), "microseconds per step, warm memory but for the cold ones")
    print(tabulate(rows, headers, floatfmt=".2f"))


if __name__ == "__main__":
    main()
