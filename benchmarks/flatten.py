"""Time one layer's experts on a CPU: all slots of a step, and only the pairs that carry weight.

Run ``python benchmarks/flatten.py``; with vLLM's CPU build for ``--kernel vllm``, with Transformers for the
others. Each variant first gives the output of all slots within rounding; if one does not, nothing is timed.
Then the variants take turns in one run, each time on the next experts, whose weights are no longer in the
caches. "off" has uniformly random experts in each row. The others are re-routed to fewer experts, with all
slots or with the first 4, 3 and 2 of each row. Set OMP_NUM_THREADS for the number of threads.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import torch
from tabulate import tabulate
from torch import Tensor

from sere.bench.timing import spread, turns
from sere.files import append_json_line
from sere.flatten import Costs, Pairs, find_pairs, measure, skip_empty_slots, sum_by_row
from sere.provenance import provenance

# Qwen3-30B-A3B's layer, and the experts that the recommended settings of 0.1 left per number of rows.
E, K, H, I = 128, 8, 2048, 768  # noqa: E741
EXPERTS = {8: 8, 16: 15, 32: 28, 64: 50, 128: 80}
KEPT = (4, 3, 2)
TRANSFORMERS = ("eager", "grouped_mm", "batched_mm")
DEFAULT_OUT = Path("benchmarks/results/flatten.jsonl")

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Computes ``[rows, H]`` from hidden states, ids and weights."""


def vllm_kernel(E: int, H: int, I: int) -> tuple[Kernel, str]:  # noqa: E741
    """Return vLLM's kernel on random weights, and the instructions that it uses."""
    from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight

    isa = "amx" if torch.cpu._is_amx_tile_supported() else "vec"
    w13, w2 = (cpu_prepack_moe_weight(weight, isa) for weight in random_weights(E, H, I))

    def run(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.empty_like(hidden)
        cpu_fused_moe(out, hidden, w13, w2, None, None, weights, ids.to(torch.int32), "silu", isa, False)
        return out

    return run, isa


def transformers_kernel(name: str, E: int, H: int, I: int) -> Kernel:  # noqa: E741
    """Return an experts module of Transformers on random weights."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = SimpleNamespace(
        num_experts=E, hidden_size=H, moe_intermediate_size=I, hidden_act="silu", _experts_implementation=name
    )
    with torch.device("meta"):
        module = Qwen3MoeExperts(config).to(torch.bfloat16)
    gate_up, down = random_weights(E, H, I)
    module.load_state_dict({"gate_up_proj": gate_up, "down_proj": down}, assign=True)

    def run(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = module(hidden, ids, weights.to(hidden.dtype))
        return out

    return run


def random_weights(E: int, H: int, I: int) -> tuple[Tensor, Tensor]:  # noqa: E741
    """Return both matrices of all experts in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(2 * I, H, generator=generator).bfloat16() / math.sqrt(H)
    other = torch.randn(H, I, generator=generator).bfloat16() / math.sqrt(I)
    # Different memory for each expert; equal numbers take as long.
    return one.expand(E, -1, -1).clone(), other.expand(E, -1, -1).clone()


def flattened(kernel: Kernel, hidden: Tensor, ids: Tensor, weights: Tensor, skipped: int | None) -> Tensor:
    """Compute what carries weight in a step, as the engines do; ``skipped`` is an id that a kernel skips."""
    if skipped is not None:
        new_ids, new_weights, _ = skip_empty_slots(ids, weights, skipped)
        return kernel(hidden, new_ids, new_weights)
    return compute(kernel, hidden, find_pairs(ids, weights))


def compute(kernel: Kernel, hidden: Tensor, pairs: Pairs) -> Tensor:
    """Compute pairs and add them up by row."""
    outputs = kernel(hidden.index_select(0, pairs.rows), pairs.ids, pairs.weights)
    return sum_by_row(outputs, pairs.rows, hidden.shape[0])


def choose(T: int, distinct: int, E: int, K: int, seed: int) -> Tensor:
    """Return K different experts in each row, of a random subset."""
    generator = torch.Generator().manual_seed(seed)
    among = torch.randperm(E, generator=generator)[:distinct]
    picks = torch.rand(T, distinct, generator=generator).argsort(dim=1)
    if distinct >= K:
        return among[picks[:, :K]]
    return among[torch.randint(distinct, (T, K), generator=generator)]


def variants(kernel: Kernel, M: int, E: int, K: int, skipped: int | None) -> dict[str, tuple[int, Kernel]]:
    """Return what is timed by name: how many experts the rows may choose among, and what computes them."""

    def keeping(kept: int) -> Kernel:
        def run(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            weights[:, kept:] = 0
            return flattened(kernel, hidden, ids, weights, skipped)

        return run

    found = {"off": (E, kernel), f"re-routed, {K} slots": (M, kernel)}
    return found | {f"{kept} slots kept, flattened": (M, keeping(kept)) for kept in KEPT if kept < K}


def check(kernel: Kernel, T: int, H: int, M: int, E: int, K: int, skipped: int | None) -> None:
    """Stop unless pairs give the output of all slots, up to the rounding of bfloat16.

    Raises:
        SystemExit: They differ.
    """
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(T, H, generator=generator).bfloat16()
    ids, weights = choose(T, M, E, K, 0), torch.rand(T, K, generator=generator)
    weights[:, K // 2 :] = 0
    expected = kernel(hidden, ids, weights)
    found = flattened(kernel, hidden, ids, weights, skipped)
    if not torch.allclose(expected.float(), found.float(), rtol=2**-5, atol=2**-5):
        raise SystemExit("pairs differ from all slots: run make test; nothing is timed")


def time_in_turns(
    found: dict[str, tuple[int, Kernel]], hidden: Tensor, E: int, K: int, rounds: int
) -> dict[str, list[float]]:
    """Return milliseconds per call; a first round, not kept, warms up."""
    samples: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name in turns(list(found), turn):
            among, run = found[name]
            ids = choose(hidden.shape[0], among, E, K, turn)
            weights = torch.full(ids.shape, 1 / K)
            started = perf_counter()
            run(hidden, ids, weights)
            if turn > 0:
                samples[name].append((perf_counter() - started) * 1e3)
    return samples


def break_even(kernel: Kernel, H: int, E: int, K: int) -> Costs:
    """Return what ``flatten="auto"`` would go by on this machine."""
    hidden = torch.ones(1, H).bfloat16()

    def pairs(found: Pairs, T: int) -> Tensor:
        return compute(kernel, hidden.expand(T, -1).contiguous(), found)

    def slots(ids: Tensor, weights: Tensor) -> Tensor:
        return kernel(hidden.expand(len(ids), -1).contiguous(), ids, weights)

    return measure(slots, pairs, E=E, K=K, ids_dtype=torch.int64, weights_dtype=torch.float32)


def arguments(
    about: str | None, kernels: Sequence[str], rounds: int, out: Path
) -> tuple[argparse.Namespace, dict[str, int]]:
    """Return the command line of a benchmark of one layer's experts, and the layer's sizes by name.

    Args:
        about: What the benchmark does.
        kernels: What ``--kernel`` takes; the first is the default.
        rounds: Without ``--rounds``; 3 with ``--quick``.
        out: Without ``--out``.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--kernel", choices=kernels, default=kernels[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--quick", action="store_true", help="one tiny layer, few rounds: only that it runs")
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args()
    if args.quick:
        args.rounds = 3
    return args, {"E": 16, "H": 64, "I": 32} if args.quick else {"E": E, "H": H, "I": I}


@torch.no_grad()
def main() -> None:
    """Check, time, print a table and write one record per case."""
    args, sizes = arguments(__doc__, ("vllm", *TRANSFORMERS), 30, DEFAULT_OUT)
    experts = {8: 8, 16: 12} if args.quick else EXPERTS
    kernel, isa = vllm_kernel(**sizes) if args.kernel == "vllm" else (None, None)
    kernel = kernel or transformers_kernel(args.kernel, **sizes)
    skipped = sizes["E"] if args.kernel == "eager" else None
    costs = break_even(kernel, sizes["H"], sizes["E"], K)
    print(f"flatten='auto' takes pairs up to a share of the slots of {costs.describe()}")
    rows = []
    for T, M in experts.items():
        check(kernel, T, sizes["H"], M, sizes["E"], K, skipped)
        hidden = torch.randn(T, sizes["H"], generator=torch.Generator().manual_seed(T)).bfloat16()
        found = variants(kernel, M, sizes["E"], K, skipped)
        timed = time_in_turns(found, hidden, sizes["E"], K, args.rounds)
        for name, samples in timed.items():
            ratio = spread([base / mine for base, mine in zip(timed["off"], samples, strict=True)])
            one = spread(samples)
            config = {"kernel": args.kernel, "isa": isa, "T": T, "K": K, "M": M, **sizes, "variant": name,
                      "threads": torch.get_num_threads(), "rounds": args.rounds}  # fmt: skip
            line = {"benchmark": "flatten", "unit": "ms_per_call", "median": one.p50, "p20": one.p20}
            line |= {"p80": one.p80, "off_over_this": ratio.p50, "break_even": list(costs.shares)}
            append_json_line(args.out, {**line, "config": config, **provenance()})
            rows.append([T, name, one.p50, one.p20, one.p80, ratio.p50])
    print(tabulate(rows, ["T", "variant", "median, ms per call", "p20", "p80", "off / this"], floatfmt=".2f"))


if __name__ == "__main__":
    main()
