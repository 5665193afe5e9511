"""Serve Qwen3-30B-A3B's full shape with vLLM: re-routing off, the default, S = 1 and 2 alone, in turns.

Run ``python benchmarks/gpu_serve.py`` with vLLM and sere's plug-in installed (``benchmarks/vllm_pieces.py``
carries them to a machine without a network). All 48 layers, random weights of a standard deviation that keeps
tokens apart, random similarities, CUDA graphs on. One engine: settings change between blocks of steps, so
that other changes of the machine affect all alike. Therefore ``off`` includes the kernel's launches, which
change nothing then, and the speedup does not contain the overhead of re-routing. An engine without the
plug-in is not timed here. A block's time per output token is the difference of a long and a short
generation, so it does not include prefill. One JSON line per batch size.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from sere.bench.shapes import shape_config
from sere.bench.target import random_model, random_table
from sere.bench.timing import spread
from sere.engines.settings import counted_changes, live_changes
from sere.files import append_json_line
from sere.integrations.vllm.start.versions import engine_version
from sere.policies.spec import PolicySpec, parse_specs
from sere.provenance import provenance

ROWS = (1, 4, 8, 16, 32, 64, 128)
SETTINGS: Mapping[str, PolicySpec] = {
    spec.label: spec
    for spec in parse_specs(("sere", "sere:active_experts=0", "sere:select_top_k=2,active_experts=0"))
}
PROMPT, ROUNDS, SPREAD = 32, 5, 0.04
COUNTED = ("distinct_before", "distinct_after", "slots_rerouted")
RESULTS = Path(__file__).parent / "results" / "gpu_serve.jsonl"


def why_not(*, eager: bool) -> str | None:
    """Return why nothing can be served here, or None; an eager engine may run anywhere, to try the script."""
    if engine_version() is None:
        return "vLLM is not installed (benchmarks/vllm_pieces.py carries it to a machine without a network)"
    if not eager and not torch.cuda.is_available():
        return "no CUDA device here (--eager --shape tiny tries the script on a CPU)"
    return None


def prepare(folder: Path, shape: str) -> Path:
    """Write a model's config and a random table; return the table's path. No weights: vLLM makes them."""
    config = shape_config(shape)
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    config.save_pretrained(folder)
    table = folder.with_name("table.sere.safetensors")
    random_table(random_model(shape, device="meta"), factors=True).save(table)
    return table


def scatter_weights(worker: Any) -> int:
    """Give every weight a random value in place, norms the value 1; return how many there are.

    vLLM's own dummy weights are so small that all tokens take the same experts.
    """
    count = 0
    for name, weight in worker.get_model().named_parameters():
        if "norm" in name:
            weight.data.fill_(1)
        else:
            weight.data.normal_(0, SPREAD)
        count += weight.numel()
    return count


def start(folder: Path, table: Path, most_rows: int, options: Mapping[str, Any]) -> Any:
    """Start the engine in this process, with re-routing on at its defaults."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    from vllm import LLM

    settings = {"table": str(table), "log_seconds": 0}
    llm = LLM(
        str(folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", seed=0,
        max_model_len=512, max_num_seqs=most_rows, enable_prefix_caching=False,
        additional_config={"sere": settings}, **options,
    )  # fmt: skip
    (count,) = llm.collective_rpc(scatter_weights)
    print(f"{count / 1e9:.2f}e9 weights")
    return llm


def generate_ms(llm: Any, prompts: list[Any], tokens: int) -> float:
    """Return how long it takes to generate ``tokens`` tokens for every prompt, in ms."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    started = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return (time.perf_counter() - started) * 1e3


def measure(llm: Any, B: int, steps: int, vocabulary: int) -> dict[str, dict[str, float]]:
    """Return per setting TPOT in ms with spread, tokens per second, experts, share of re-routed slots."""
    from sere.integrations.vllm import configure, read_stats  # type: ignore[import-not-found, unused-ignore]

    generator = torch.Generator().manual_seed(B)
    ids = torch.randint(0, vocabulary, (B, PROMPT), generator=generator).tolist()
    prompts = [{"prompt_token_ids": row} for row in ids]
    samples: dict[str, list[float]] = {name: [] for name in SETTINGS}
    layers: dict[str, Any] = {}
    for turn in range(ROUNDS + 1):
        # The first turn warms up and counts: an engine that is switched off counts nothing.
        changes = counted_changes if turn == 0 else live_changes
        for name in [*SETTINGS][turn % len(SETTINGS) :] + [*SETTINGS][: turn % len(SETTINGS)]:
            configure(llm, **changes(SETTINGS[name]))
            short = generate_ms(llm, prompts, 1)
            read_stats(llm, reset=True)
            long = generate_ms(llm, prompts, 1 + steps)
            if turn == 0:
                layers[name] = read_stats(llm).layers
            else:
                samples[name].append((long - short) / steps)
    return {name: summary(samples[name], layers[name], B) for name in SETTINGS}


def summary(tpot: list[float], layers: Any, B: int) -> dict[str, float]:
    """Return the figures of one setting."""
    found = spread(tpot)

    def mean(name: str) -> float:
        return statistics.fmean(getattr(layer, name) for layer in layers)

    return {
        "tpot_ms": found.p50,
        "p20": found.p20,
        "p80": found.p80,
        "tokens_per_s": B * 1e3 / found.p50,
        **{name: mean(name) for name in COUNTED},
    }


def rows_of(B: int, result: Mapping[str, Mapping[str, float]]) -> list[list[Any]]:
    """Return the table's rows for one batch size."""
    off = result["off"]["tpot_ms"]
    names = ("tpot_ms", "p20", "p80", "tokens_per_s", *COUNTED)
    return [
        [B, name, *(figures[key] for key in names), off / figures["tpot_ms"]]
        for name, figures in result.items()
    ]


def main() -> None:
    """Start, measure every batch size that fits the time, print the table last."""
    parser = argparse.ArgumentParser(description="vLLM with re-routing off and on.")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="a name of sere.bench.shapes")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--steps", type=int, default=64, help="decode steps per block")
    parser.add_argument("--seconds", type=float, default=480, help="no batch size is begun after this")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs: only to try the script")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    reason = why_not(eager=arguments.eager)
    if reason is not None:
        raise SystemExit(f"nothing to serve: {reason}")
    started, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        table = prepare(folder, arguments.shape)
        options = {"enforce_eager": True} if arguments.eager else {"gpu_memory_utilization": 0.92}
        llm = start(folder, table, max(arguments.rows), options)
        for B in arguments.rows:
            if time.perf_counter() - started > arguments.seconds:
                print(f"B={B}: left out, the time is up")
                continue
            result = measure(llm, B, arguments.steps, shape_config(arguments.shape).vocab_size)
            config = {"shape": arguments.shape, "B": B, "steps": arguments.steps, "prompt": PROMPT}
            record = {"benchmark": "gpu_serve", "unit": "ms_per_token", "settings": result, "config": config}
            append_json_line(arguments.out, {**record, **provenance()})
            rows += rows_of(B, result)
    print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the numbers mean nothing")
    print("'off' includes the kernel's launches: there is one graph for all settings")
    headers = ["B", "setting", "TPOT ms", "p20", "p80", "tokens/s", "experts", "after", "rerouted", "speedup"]
    print(tabulate(rows, headers, floatfmt=".2f"))


if __name__ == "__main__":
    main()
