"""What calibration gains on a CPU that emulates bfloat16: one layer's experts, on all tokens of a call.

    python benchmarks/calibrate_float32.py

All 128 experts of a layer of Qwen3-30B-A3B's shape compute the tokens that a calibration hands them at a time
with its default settings (256), as PyTorch multiplies in bfloat16 and with float32 products, in turns. One
JSON line with both goes to ``--out``. On a CPU on which PyTorch does not emulate
bfloat16 there is nothing to compare.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from sere.bench.target import random_model
from sere.bench.timing import spread
from sere.calibrate.experts import expert_outputs
from sere.calibrate.float32_products import emulates_bfloat16, float32_products
from sere.cli.numbers import whole
from sere.eval.statistics.by_round import median_ratio
from sere.files import append_json_line
from sere.provenance import describe_machine, provenance
from sere.structure import find_experts

RESULTS = Path(__file__).parent / "results" / "calibrate_float32.jsonl"
WAYS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "bfloat16": nullcontext,
    "float32": float32_products,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Time both ways and print them."""
    parser = argparse.ArgumentParser(description="Float32 products in place of emulated ones.")
    parser.add_argument("--preset", default="qwen3-30b-a3b")
    parser.add_argument("--tokens", type=whole(1), default=256)
    parser.add_argument("--rounds", type=whole(1), default=5)
    parser.add_argument("--threads", type=whole(1), default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if not emulates_bfloat16():
        raise SystemExit("PyTorch does not emulate bfloat16 on this CPU: nothing to compare")
    torch.set_num_threads(args.threads)
    model = random_model(args.preset, layers=1)
    (layer,) = find_experts(model)
    hidden = torch.randn(args.tokens, model.config.hidden_size).bfloat16()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, Tensor] = {}
    for _ in range(args.rounds):
        for way, products in WAYS.items():
            started = time.perf_counter()
            with products():
                found[way] = expert_outputs(layer, hidden)
            seconds[way].append(time.perf_counter() - started)
    ratio = median_ratio(seconds["bfloat16"], seconds["float32"])
    difference = float((found["float32"] - found["bfloat16"]).norm() / found["bfloat16"].norm())
    record = {
        "benchmark": "calibrate_float32", "preset": args.preset, "experts": layer.num_experts,
        "tokens": args.tokens, "seconds": {way: asdict(spread(times)) for way, times in seconds.items()},
        "ratio": asdict(ratio), "relative_difference": difference, "provenance": provenance(),
    }  # fmt: skip
    append_json_line(args.out, record)
    rows = [[way, *asdict(spread(times)).values()] for way, times in seconds.items()]
    print(describe_machine(record["provenance"]["machine"]))
    print(tabulate(rows, ["products in", "s, 20 %", "median", "80 %"], floatfmt=".2f"))
    bounds = "" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
    print(f"{ratio.value:.2f} times as fast{bounds}; outputs differ by {difference:.1e}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
