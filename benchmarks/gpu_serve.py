"""Serve Qwen3-30B-A3B's full shape with vLLM: re-routing off, the default, S = 1 and 2 alone, in turns.

    python benchmarks/gpu_serve.py --vanilla     first an engine that never loads the plug-in
    python benchmarks/gpu_serve.py               then the settings, in one engine

This needs vLLM and sere's plug-in (``benchmarks/vllm_pieces.py`` carries them to a machine without a
network). All 48 layers, random weights of a standard deviation that keeps tokens apart, random similarities,
CUDA graphs on. Settings change between blocks of steps, so that other changes of the machine affect all
alike. Therefore ``off`` includes the kernel's launches, which change nothing then; what these cost is the
difference to ``vanilla``. Two such engines do not fit a card of 80 GB, so ``vanilla`` is a process of its own
and takes no turns with the others. A block's time per output token is the difference of a long and a short
generation, so it does not include prefill. Then each setting's time to the first token of one prompt of 2048
and of 8192 tokens. One JSON line per batch size, and one for the first tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from sere.bench.shapes import shape_config
from sere.bench.target import random_model, random_table
from sere.bench.timing import spread
from sere.engines.environment import engine_environment
from sere.engines.settings import counted_changes, live_changes
from sere.files import append_json_line
from sere.integrations.vllm import configure, read_stats
from sere.integrations.vllm.start.versions import engine_version
from sere.policies.spec import PolicySpec, parse_specs
from sere.provenance import provenance

ROWS = (1, 4, 8, 16, 32, 64, 128)
SETTINGS: Mapping[str, PolicySpec] = {
    spec.label: spec
    for spec in parse_specs(("sere", "sere:active_experts=0", "sere:select_top_k=2,active_experts=0"))
}
# An engine without the plug-in has one way to run, and nothing to configure.
VANILLA: Mapping[str, PolicySpec | None] = {"vanilla": None}
PROMPT, ROUNDS, SPREAD = 32, 5, 0.04
PROMPTS = (32, 2048, 8192)
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


def start(folder: Path, table: Path | None, rows: int, longest: int, options: Mapping[str, Any]) -> Any:
    """Start the engine in this process, with re-routing on at its defaults, or without sere's plug-in.

    Args:
        folder: The model.
        table: The similarity table; None for an engine without the plug-in.
        rows: Most requests at once.
        longest: Tokens of the longest prompt.
        options: More of vLLM's options.
    """
    settings = None if table is None else {"table": str(table), "log_seconds": 0}
    os.environ |= engine_environment(settings)
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    from vllm import LLM

    additional = {} if settings is None else {"additional_config": {"sere": settings}}
    llm = LLM(
        str(folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", seed=0,
        max_model_len=max(512, longest + 8), max_num_seqs=rows, enable_prefix_caching=False,
        **additional, **options,
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


def random_prompts(count: int, tokens: int, vocabulary: int, seed: int) -> list[Any]:
    """Return prompts of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (count, tokens), generator=generator).tolist()
    return [{"prompt_token_ids": row} for row in ids]


def in_turn(settings: Mapping[str, PolicySpec | None], turn: int) -> list[str]:
    """Return the settings' names, each turn beginning with another."""
    names, first = [*settings], turn % len(settings)
    return names[first:] + names[:first]


def measure(
    llm: Any, settings: Mapping[str, PolicySpec | None], B: int, steps: int, vocabulary: int
) -> dict[str, dict[str, float]]:
    """Return per setting TPOT in ms with spread, tokens per second, experts, share of re-routed slots."""
    prompts = random_prompts(B, PROMPT, vocabulary, seed=B)
    samples: dict[str, list[float]] = {name: [] for name in settings}
    layers: dict[str, Any] = {}
    for turn in range(ROUNDS + 1):
        # The first turn warms up and counts: an engine that is switched off counts nothing.
        changes = counted_changes if turn == 0 else live_changes
        for name in in_turn(settings, turn):
            spec = settings[name]
            if spec is not None:
                configure(llm, **changes(spec))
            short = generate_ms(llm, prompts, 1)
            if spec is not None:
                read_stats(llm, reset=True)
            long = generate_ms(llm, prompts, 1 + steps)
            if turn == 0:
                layers[name] = [] if spec is None else read_stats(llm).layers
            else:
                samples[name].append((long - short) / steps)
    return {name: summary(samples[name], layers[name], B) for name in settings}


def first_tokens(
    llm: Any, settings: Mapping[str, PolicySpec | None], lengths: Sequence[int], vocabulary: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Return per length and setting the time to the first token of one prompt, in ms with spread."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for length in lengths:
        prompt = random_prompts(1, length, vocabulary, seed=length)
        samples: dict[str, list[float]] = {name: [] for name in settings}
        for turn in range(ROUNDS + 1):
            for name in in_turn(settings, turn):
                spec = settings[name]
                if spec is not None:
                    configure(llm, **live_changes(spec))
                took = generate_ms(llm, prompt, 1)
                # The first turn warms up.
                samples[name] += [took] * (turn > 0)
        spreads = {name: spread(values) for name, values in samples.items()}
        found[str(length)] = {
            name: {"ttft_ms": one.p50, "p20": one.p20, "p80": one.p80} for name, one in spreads.items()
        }
    return found


def summary(tpot: list[float], layers: Any, B: int) -> dict[str, float]:
    """Return the figures of one setting; without the plug-in there are no layers that count."""
    found = spread(tpot)
    times = {"tpot_ms": found.p50, "p20": found.p20, "p80": found.p80, "tokens_per_s": B * 1e3 / found.p50}
    return times | {
        name: statistics.fmean(getattr(layer, name) for layer in layers) for name in COUNTED if layers
    }


def rows_of(B: int, result: Mapping[str, Mapping[str, float]]) -> list[list[Any]]:
    """Return the table's rows for one batch size."""
    first, *_ = result.values()
    names = ("tpot_ms", "p20", "p80", "tokens_per_s", *COUNTED)
    return [
        [B, name, *(figures.get(key) for key in names), first["tpot_ms"] / figures["tpot_ms"]]
        for name, figures in result.items()
    ]


def main() -> None:
    """Start, measure every batch size that fits the time, print the table last."""
    parser = argparse.ArgumentParser(description="vLLM with re-routing off and on.")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="a name of sere.bench.shapes")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--steps", type=int, default=64, help="decode steps per block")
    parser.add_argument("--seconds", type=float, default=480, help="no batch size is begun after this")
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS, help="for the first token")
    parser.add_argument("--vanilla", action="store_true", help="an engine that never loads sere's plug-in")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs: only to try the script")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    reason = why_not(eager=arguments.eager)
    if reason is not None:
        raise SystemExit(f"nothing to serve: {reason}")
    settings = VANILLA if arguments.vanilla else SETTINGS
    started, rows = time.perf_counter(), []
    vocabulary = shape_config(arguments.shape).vocab_size
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        table = prepare(folder, arguments.shape)
        options = {"enforce_eager": True} if arguments.eager else {"gpu_memory_utilization": 0.92}
        needed = None if arguments.vanilla else table
        llm = start(folder, needed, max(arguments.rows), max(arguments.prompts), options)
        for B in arguments.rows:
            if time.perf_counter() - started > arguments.seconds:
                print(f"B={B}: left out, the time is up")
                continue
            result = measure(llm, settings, B, arguments.steps, vocabulary)
            config = {"shape": arguments.shape, "B": B, "steps": arguments.steps, "prompt": PROMPT}
            record = {"benchmark": "gpu_serve", "unit": "ms_per_token", "settings": result, "config": config}
            append_json_line(arguments.out, {**record, **provenance()})
            rows += rows_of(B, result)
        first = first_tokens(llm, settings, arguments.prompts, vocabulary)
        config = {"shape": arguments.shape, "prompts": [*arguments.prompts]}
        record = {"benchmark": "gpu_serve", "unit": "ms", "first_tokens": first, "config": config}
        append_json_line(arguments.out, {**record, **provenance()})
    print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the numbers mean nothing")
    print("'off' includes the kernel's launches: there is one graph for all settings")
    headers = ["B", "setting", "TPOT ms", "p20", "p80", "tokens/s", "experts", "after", "rerouted", "speedup"]
    print(tabulate(rows, headers, floatfmt=".2f"))
    waits = [
        [length, name, *figures.values()]
        for length, found in first.items()
        for name, figures in found.items()
    ]
    print(tabulate(waits, ["prompt", "setting", "first token ms", "p20", "p80"], floatfmt=".2f"))


if __name__ == "__main__":
    main()
