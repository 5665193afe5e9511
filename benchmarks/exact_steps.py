"""What sere costs in decode steps in which it changes nothing: engines that share their weights.

    python benchmarks/exact_steps.py --compile --out benchmarks/results/exact_steps.jsonl

Two engines of vLLM that never asked for sere, and one that did, decode the same requests, step by step in
turns. Two processes differ by far more than sere costs, by where each has its weights in memory; here all
three read the same weights. ``off``: re-routing is switched off. ``all kept``: it is on with S = K. The
second vanilla engine says what can be told apart at all. In turns, each engine finds the caches as another
one left them.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tabulate import tabulate

from sere.bench.shapes import SHAPES
from sere.bench.target import random_model, random_table
from sere.bench.timing import spread, turns
from sere.bench.vllm.blocks import make_prompts
from sere.bench.vllm.engine_loads import EngineLoad, decoding
from sere.bench.vllm.engine_options import start_options_for
from sere.bench.vllm.serve_plan import ServePlan
from sere.cli.numbers import whole
from sere.engines.in_process import in_process_engine, state_of, worker_of
from sere.eval.statistics.by_round import LEAST_ROUNDS, median_ratio
from sere.files import append_json_line
from sere.integrations.vllm import configure, read_stats
from sere.policies.spec import parse_spec
from sere.provenance import provenance

VANILLA, AGAIN, SERE = "vanilla", "vanilla again", "sere"
SEED, PROMPT, WARM_STEPS = 0, 8, 3


def share_weights(source: Any, other: Any) -> None:
    """Let an engine read the weights of another one, and give its own back.

    Raises:
        ValueError: Their weights are not the same.
    """
    mine, theirs = (dict(worker_of(one).model_runner.model.named_parameters()) for one in (other, source))
    for name in mine.keys() | theirs.keys():
        if name not in mine or name not in theirs or not torch.equal(mine[name], theirs[name]):
            raise ValueError(f"{name}: expected equal weights in both engines, got others")
        mine[name].data = theirs[name].data
    gc.collect()


def states(top_k: int) -> dict[str, dict[str, Any]]:
    """Return by name the settings under which the engine with sere changes nothing."""
    return {"off": {"enabled": False}, "all kept": {"enabled": True, "select_top_k": top_k}}


def steps_of(llm: Any) -> dict[str, int]:
    """Return by kind how many steps an engine took since the last time.

    Raises:
        ValueError: In one of them a slot was re-routed.
    """
    stats = read_stats(llm, reset=True)
    if any(layer.slots_rerouted for layer in stats.layers):
        raise ValueError("expected steps in which nothing is re-routed, but slots were: S is below K")
    return {"kernel": stats.steps_rerouted, **stats.skipped}


def send(llm: Any, load: EngineLoad) -> None:
    """Send an engine all requests of a load."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    prompts = make_prompts(load, engine.model_config.get_vocab_size(), SEED)
    for index, (request, prompt) in enumerate(zip(load.requests, prompts, strict=True)):
        params = SamplingParams(temperature=0, max_tokens=request.tokens, ignore_eos=True, detokenize=False)
        engine.add_request(f"bench-{index}", {"prompt_token_ids": prompt}, params)


def decode_in_turns(engines: Mapping[str, Any], load: EngineLoad) -> dict[str, list[float]]:
    """Return each engine's times in ms, step by step, without the first steps."""
    for llm in engines.values():
        send(llm, load)
    times: dict[str, list[float]] = {name: [] for name in engines}
    step = 0
    while any(llm.llm_engine.has_unfinished_requests() for llm in engines.values()):
        for name in turns(list(engines), step):
            started = perf_counter()
            engines[name].llm_engine.step()
            times[name].append((perf_counter() - started) * 1e3)
        step += 1
    # The first step reads the prompts.
    return {name: found[1 + WARM_STEPS :] for name, found in times.items()}


def summarize(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return what a record says: times, and how many times as long each step takes as vanilla's beside it.

    Of the ratios, the median with its 95 % interval.
    """
    return {
        "step_ms": {name: asdict(spread(found)) for name, found in times.items()},
        "to_vanilla": {
            name: asdict(median_ratio(found, times[VANILLA]))
            for name, found in times.items()
            if name != VANILLA
        },
    }


def start(args: argparse.Namespace, stack: ExitStack) -> dict[str, Any]:
    """Start the engines; the weights are in memory once, but for while an engine starts."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sere-exact-steps-")))
    model = random_model(args.preset, layers=args.layers)
    model.save_pretrained(folder / "model")
    random_table(model, factors=True).save(folder / "table.sere")
    del model
    gc.collect()
    plan = ServePlan(settings=[parse_spec("off")], compiled=args.compile, seed=SEED)
    loads = [decoding(B, PROMPT, args.steps + WARM_STEPS) for B in args.batch_size]
    options = start_options_for(plan, loads, dtype="bfloat16") | {"kv_cache_memory_bytes": args.kv_mb * 2**20}
    engines: dict[str, Any] = {}
    for name in (VANILLA, SERE, AGAIN):
        sere = {"table": str(folder / "table.sere")} if name == SERE else None
        path = str(folder / "model")
        engines[name] = stack.enter_context(in_process_engine(path, sere, threads=args.threads, **options))
        if name != VANILLA:
            share_weights(engines[VANILLA], engines[name])
    return engines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="What sere costs where it changes nothing.")
    parser.add_argument("--preset", choices=sorted(SHAPES), default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8, 16], metavar="B")
    parser.add_argument("--steps", type=whole(LEAST_ROUNDS), default=200, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-mb", type=int, default=256, help="MiB of cache for keys and values")
    parser.add_argument("--compile", action="store_true", help="compiled engines instead of eager ones")
    parser.add_argument("--out", type=Path, default=None, help="file to which a line per case is appended")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all cases, and print them."""
    args = parse(arguments)
    rows = []
    with ExitStack() as stack:
        engines = start(args, stack)
        layers = state_of(engines[SERE]).layers
        top_k = max(layer.shape.top_k for layer in layers.values())
        for B in args.batch_size:
            for state, settings in states(top_k).items():
                configure(engines[SERE], **settings)
                steps_of(engines[SERE])
                found = summarize(decode_in_turns(engines, decoding(B, PROMPT, args.steps + WARM_STEPS)))
                config = {"preset": args.preset, "layers": args.layers, "B": B, "state": state}
                config |= {"mode": "compiled" if args.compile else "eager", "steps": args.steps}
                config |= {"threads": args.threads}
                found["steps"] = steps_of(engines[SERE])
                if args.out is not None:
                    line = {"benchmark": "exact_steps", "config": config, **found, **provenance()}
                    append_json_line(args.out, line)
                ratios = (found["to_vanilla"][name] for name in (SERE, AGAIN))
                texts = [f"{one['value']:.4f} ({one['low']:.4f} to {one['high']:.4f})" for one in ratios]
                rows.append([B, state, found["step_ms"][VANILLA]["p50"], *texts])
                print(B, state, *texts, flush=True)
        engines.clear()
    print(tabulate(rows, ["B", "state", "vanilla, ms", SERE, AGAIN], floatfmt=".2f"))


if __name__ == "__main__":
    main()
