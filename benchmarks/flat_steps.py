"""Time one layer's experts on a CPU on re-routed steps: all slots, and only the pairs that carry weight.

Run ``python benchmarks/flat_steps.py`` where vLLM's CPU build is, or with ``--kernel grouped_mm`` where
Transformers is. Random routing of Qwen3-30B-A3B's layer shape is re-routed with each number of experts and
each least gain; similarities are as small as those of trained models. All slots and pairs of the same step
take turns in one run. "auto" is the share of the steps in which ``flatten="auto"`` computes pairs here. Set
OMP_NUM_THREADS for the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from flatten import (
    K,
    Kernel,
    arguments,
    break_even,
    check,
    flattened,
    transformers_kernel,
    vllm_kernel,
)
from reroute_shapes import make_similarities
from sere.bench.timing import spread, turns
from sere.config import RerouteConfig
from sere.files import append_json_line
from sere.flatten import Costs, find_pairs
from sere.provenance import provenance
from sere.reroute import PreparedLayer, Routing, TokenBatch, prepare_layer
from sere.similarity.layer import LayerSimilarity

# M by rows: the formula's, and the share of experts that each tier of the bundled model reads.
ACTIVE = {
    8: {"formula": 26, "fast": 33, "balanced": 40},
    16: {"formula": 32, "fast": 50, "balanced": 63},
    32: {"formula": 38, "fast": 65, "balanced": 82},
    64: {"formula": 44, "fast": 71, "balanced": 88},
    128: {"formula": 50, "fast": 72, "balanced": 89},
}
GAINS = (0.01, 0.03)
DEFAULT_OUT = Path("benchmarks/results/flat_steps.jsonl")


def prepare(experts: int, top_k: int, active: int, gain: float) -> PreparedLayer:
    """Return a layer of random similarities up to 0.2, with factors, whose steps read ``active`` experts."""
    (random,) = make_similarities(1, experts)
    similarity = (0.1 * (random + random.T)).fill_diagonal_(1.0)
    config = RerouteConfig(active_experts=active, min_gain=gain, backend="cpu")
    return prepare_layer(LayerSimilarity(similarity), config, top_k=top_k, scale=similarity.sqrt())


def make_steps(layer: PreparedLayer, rows: int, experts: int, top_k: int, count: int) -> list[Routing]:
    """Return re-routed steps of a router that prefers no expert."""
    generator = torch.Generator().manual_seed(rows)
    found = []
    for _ in range(count):
        weights, ids = torch.randn(rows, experts, generator=generator).softmax(dim=1).topk(top_k, dim=1)
        found.append(layer.route(TokenBatch(ids, weights / weights.sum(dim=1, keepdim=True))))
    return found


def time_in_turns(kernel: Kernel, hidden: Tensor, steps: Sequence[Routing]) -> dict[str, list[float]]:
    """Return milliseconds per step, the search for pairs included; the first step, not kept, warms up."""
    samples: dict[str, list[float]] = {"slots": [], "pairs": []}
    for turn, (ids, weights) in enumerate(steps):
        for name in turns(list(samples), turn):
            started = perf_counter()
            if name == "slots":
                kernel(hidden, ids, weights)
            else:
                flattened(kernel, hidden, ids, weights, None)
            samples[name].append((perf_counter() - started) * 1e3)
    return {name: found[1:] for name, found in samples.items()}


def measured(kernel: Kernel, hidden: Tensor, steps: Sequence[Routing], costs: Costs) -> dict[str, Any]:
    """Return what a record says of one case, beside what was timed."""
    times = time_in_turns(kernel, hidden, steps)
    slots, pairs = (spread(samples) for samples in times.values())
    ratio = spread([all_slots / mine for all_slots, mine in zip(*times.values(), strict=True)])
    kept = [len(find_pairs(*step).rows) for step in steps]
    T, K = steps[0].ids.shape
    return {
        "slots_ms": {"p20": slots.p20, "median": slots.p50, "p80": slots.p80},
        "pairs_ms": {"p20": pairs.p20, "median": pairs.p50, "p80": pairs.p80},
        "faster": {"p20": ratio.p20, "median": ratio.p50, "p80": ratio.p80},
        "experts": mean(len(set(step.ids.flatten().tolist())) for step in steps),
        "pairs_share": mean(kept) / (T * K),
        "auto_share": mean(n <= costs.most_pairs(T, K) for n in kept),
    }


@torch.no_grad()
def main() -> None:
    """Check, time, print a table and write one record per case."""
    # "eager" skips an id instead of computing pairs.
    args, sizes = arguments(__doc__, ("vllm", "grouped_mm", "batched_mm"), 40, DEFAULT_OUT)
    active = {8: {"formula": 12}} if args.quick else ACTIVE
    kernel = vllm_kernel(**sizes)[0] if args.kernel == "vllm" else transformers_kernel(args.kernel, **sizes)
    costs = break_even(kernel, sizes["H"], sizes["E"], K)
    print(f"flatten='auto' takes pairs up to a share of the slots of {costs.describe()}")
    rows = []
    for (T, of_rows), gain in product(active.items(), GAINS):
        hidden = torch.randn(T, sizes["H"], generator=torch.Generator().manual_seed(T)).bfloat16()
        for which, M in of_rows.items():
            check(kernel, T, sizes["H"], M, sizes["E"], K, None)
            steps = make_steps(prepare(sizes["E"], K, M, gain), T, sizes["E"], K, args.rounds + 1)
            found = measured(kernel, hidden, steps, costs)
            config = {"kernel": args.kernel, "T": T, "K": K, "M": M, "which": which, "min_gain": gain}
            config |= {**sizes, "threads": torch.get_num_threads(), "rounds": args.rounds}
            line = {"benchmark": "flat_steps", **found, "break_even": costs.points(), "config": config}
            append_json_line(args.out, {**line, **provenance()})
            rows.append([T, which, M, gain, *(found[name] for name in ("experts", "pairs_share")),
                         found["slots_ms"]["median"], found["pairs_ms"]["median"], found["faster"]["median"],
                         found["auto_share"]])  # fmt: skip
    heads = ["T", "M of", "M", "min_gain", "experts", "pairs", "slots, ms", "pairs, ms", "faster", "auto"]
    print(tabulate(rows, heads, floatfmt=("", "", "", "", ".1f", ".2f", ".2f", ".2f", ".3f", ".2f")))


if __name__ == "__main__":
    main()
