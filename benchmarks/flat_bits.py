"""Where pairs give an expert kernel's bits of all slots: rows compared, nothing timed.

Run ``python benchmarks/flat_bits.py``. Where vLLM's CPU build is installed its kernels are compared, else
those of Transformers. A row either has slots of weight 0, one slot with a weight, or each expert twice. One
line per kernel, dtype and kind of row goes to ``benchmarks/results/flat_bits.jsonl``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from flatten import Kernel, flattened
from sere.files import append_json_line
from sere.provenance import provenance

E, K, H, I, T, SEEDS = 32, 8, 256, 128, 16, 4  # noqa: E741
DEFAULT_OUT = Path("benchmarks/results/flat_bits.jsonl")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unquantized(dtype: torch.dtype) -> Kernel:
    """Return vLLM's kernel for weights that are not quantized, on random ones."""
    from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight

    isa = "amx" if torch.cpu._is_amx_tile_supported() and dtype is torch.bfloat16 else "vec"
    w13, w2 = (cpu_prepack_moe_weight(weight, isa) for weight in random_weights(dtype))

    def run(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.empty_like(hidden)
        cpu_fused_moe(out, hidden, w13, w2, None, None, weights, ids.to(torch.int32), "silu", isa, False)
        return out

    return run


def int8(_: torch.dtype) -> Kernel:
    """Return vLLM's kernel for INT8 weights, on random ones."""
    from vllm._custom_ops import CPUQuantMethod, fused_experts_cpu

    generator = torch.Generator().manual_seed(0)
    whole = [torch.randint(-100, 100, size, generator=generator) for size in ((E, 2 * I, H), (E, H, I))]
    w13, w2 = (torch.ops._C.convert_weight_packed(weight.to(torch.int8)) for weight in whole)
    scales = [torch.rand(E, size, generator=generator) * 0.002 + 0.001 for size in (2 * I, H)]

    def run(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out, nothing = torch.empty_like(hidden), [None] * 7
        fused_experts_cpu(
            out,
            hidden,
            w13,
            w2,
            weights,
            ids.to(torch.int32),
            CPUQuantMethod.INT8_W8A8,
            *scales,
            *nothing,
            True,
        )
        return out

    return run


def of_transformers(name: str) -> Callable[[torch.dtype], Kernel]:
    """Return what makes an experts module of Transformers, on random weights."""

    def make(dtype: torch.dtype) -> Kernel:
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

        config = SimpleNamespace(
            num_experts=E, hidden_size=H, moe_intermediate_size=I, hidden_act="silu",
            _experts_implementation=name,
        )  # fmt: skip
        module = Qwen3MoeExperts(config).to(dtype)
        gate_up, down = random_weights(dtype)
        module.load_state_dict({"gate_up_proj": gate_up, "down_proj": down})

        def run(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            out: Tensor = module(hidden, ids, weights.to(hidden.dtype))
            return out

        return run

    return make


def random_weights(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return both matrices of all experts."""
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(E, 2 * I, H, generator=generator) / 16
    return gate_up.to(dtype), (torch.randn(E, H, I, generator=generator) / 11).to(dtype)


def kinds(seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield kinds of rows with their ids and weights, ``[T, K]``."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(T, E, generator=generator).argsort(1)[:, :K].contiguous()
    weights = torch.rand(T, K, generator=generator) + 0.01
    some, one = weights.clone(), weights.clone()
    some[:, ::2] = 0
    one[:, 1:] = 0
    yield "slots of weight 0", ids, some
    yield "one slot with a weight", ids, one
    yield "each expert twice", ids[:, : K // 2].repeat(1, 2), weights


def compare(kernel: Kernel, dtype: torch.dtype, skipped: int | None) -> dict[str, tuple[int, int, float]]:
    """Return by kind of row: rows of equal bits, all rows, and the largest difference.

    The difference is in units of the dtype's ε times the largest output of all slots.
    """
    found: dict[str, tuple[int, int, float]] = {}
    for seed in range(SEEDS):
        hidden = torch.randn(T, H, generator=torch.Generator().manual_seed(100 + seed)).to(dtype)
        for kind, ids, weights in kinds(seed):
            expected = kernel(hidden, ids, weights)
            mine = flattened(kernel, hidden, ids, weights, skipped)
            away = (mine.float() - expected.float()).abs().max() / expected.float().abs().max()
            equal, rows, largest = found.get(kind, (0, 0, 0.0))
            equal += int((mine == expected).all(1).sum())
            found[kind] = (equal, rows + T, max(largest, float(away) / torch.finfo(dtype).eps))
    return found


@torch.no_grad()
def main() -> None:
    """Compare, print a table and write one record per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    args = parser.parse_args()
    makers: Mapping[str, Callable[[torch.dtype], Kernel]]
    if find_spec("vllm") is not None:
        makers = {"vLLM, unquantized": unquantized, "vLLM, INT8": int8}
    else:
        names = ("eager", "grouped_mm", "batched_mm")
        makers = {f"Transformers, {name}": of_transformers(name) for name in names}
    rows: list[list[Any]] = []
    for name, make in makers.items():
        skipped = E if name.endswith("eager") else None
        for dtype in (torch.bfloat16,) if make is int8 else DTYPES:
            for kind, (equal, count, largest) in compare(make(dtype), dtype, skipped).items():
                short = str(dtype).removeprefix("torch.")
                config = {
                    "kernel": name,
                    "dtype": short,
                    "rows": kind,
                    "K": K,
                    "E": E,
                    "H": H,
                    "I": I,
                    "T": T,
                }
                line = {"benchmark": "flat_bits", "equal_rows": equal, "rows": count, "largest_eps": largest}
                append_json_line(args.out, {**line, "config": config, **provenance()})
                rows.append([name, short, kind, f"{equal} of {count}", largest])
    print(tabulate(rows, ["experts", "dtype", "rows", "equal bits", "largest difference, ε"], floatfmt=".2f"))


if __name__ == "__main__":
    main()
