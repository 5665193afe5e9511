"""``sere bench run``: time per output token, off against on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sere.cli.bench.arguments import add_target_arguments
from sere.cli.loading import (
    add_model_arguments,
    add_table_argument,
    checkpoint_path,
    load_on_device,
    pick_device,
    table_path,
)
from sere.cli.numbers import whole
from sere.cli.output import add_json_flag, case_table, emit_lines, say, spread_cells
from sere.cli.parser import add_command, add_setting_argument
from sere.cli.settings import DEFAULT
from sere.errors import ConfigError

_DETAILS = """Times decode steps of B rows with re-routing off and on, in Transformers. In one run, all
settings take turns, block by block, and decode the same tokens. The table shows medians with the 20th
and 80th percentile, for the times and for the speedups over off (above 1 is faster). With --preset, the
model has a published model's layer shape and random weights (standard deviation 0.04), and the
similarities are random: neither changes how long a step takes. --out gets one JSON line per case."""

_EXAMPLES = """
  sere bench --preset qwen3-30b-a3b --layers 4 --batch-size 1 8 16 32 --out benchmarks/results/bench.jsonl
  sere bench run MODEL --setting sere --setting sere:active_experts=24 --setting topk:select_top_k=2
  sere bench --preset tiny --batch-size 4 --steps 4 --json
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "Time decoding with re-routing off and on."
    parser = add_command(subparsers, "run", summary, run, details=_DETAILS, examples=_EXAMPLES)
    add_target_arguments(parser)
    add_table_argument(parser, "the model's own, or random similarities if it has none")
    add_setting_argument(parser, [DEFAULT], done="timed")
    parser.add_argument(
        "--batch-size",
        type=whole(1),
        nargs="+",
        default=[1, 8, 16, 32],
        metavar="B",
        help="rows per step (default: 1 8 16 32)",
    )
    parser.add_argument(
        "--prompt", type=whole(1), default=32, metavar="N", help="tokens per prompt (default: 32)"
    )
    parser.add_argument(
        "--steps", type=whole(1), default=16, metavar="N", help="timed steps per block (default: 16)"
    )
    parser.add_argument(
        "--rounds", type=whole(1), default=5, metavar="N", help="blocks per setting (default: 5)"
    )
    parser.add_argument(
        "--seed", type=whole(), default=0, help="seed of weights, tokens and random rules (default: 0)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the JSON lines to this file")
    add_model_arguments(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Time, write one line per case, print the table."""
    _check_word(args.model)
    if (args.model is None) == (args.preset is None):
        raise ConfigError("bench: expected either MODEL or --preset, e.g. sere bench --preset qwen3-30b-a3b")
    if args.model is not None and args.layers is not None:
        raise ConfigError("--layers: only a --preset can have fewer layers; leave it out for a MODEL")
    emit_lines(args, _records(args), render)
    return 0


def _check_word(model: str | None) -> None:
    """Refuse a model that is rather a command of ``sere bench`` with a typing error.

    Raises:
        ConfigError: There is no such model, and the nearest command is close.
    """
    close = get_close_matches(model or "", ("run", "serve"), n=1)
    if model is not None and close and not Path(model).exists():
        raise ConfigError(
            f"bench: {model!r} is neither a command nor a model; did you mean 'sere bench {close[0]}'?"
        )


def _records(args: argparse.Namespace) -> Any:
    """Yield the records as they are measured; settings and sizes are checked before the model is made."""
    from sere.bench.run import BenchPlan, bench
    from sere.bench.shapes import shape_config
    from sere.cli.progress_bar import bar
    from sere.policies.spec import parse_specs

    plan = BenchPlan(
        settings=parse_specs(args.setting or [DEFAULT]),
        batch_sizes=list(dict.fromkeys(args.batch_size)),
        prompt=args.prompt,
        steps=args.steps,
        rounds=args.rounds,
        seed=args.seed,
        progress=bar,
    )
    if args.preset is not None:
        shape_config(args.preset, layers=_layers(args))
    yield from bench(_subject(args), plan)


def _layers(args: argparse.Namespace) -> int:
    if args.layers is not None:
        return int(args.layers)
    return 2 if args.preset == "tiny" else 4


def _subject(args: argparse.Namespace) -> Any:
    """Load or make what is timed."""
    from sere.bench.target import Subject, random_table
    from sere.table import SimilarityTable

    model = _random_model(args) if args.preset is not None else load_on_device(checkpoint_path(args), args)
    similarities = random_table(model, seed=args.seed)
    path = table_path(args) if args.model is not None or args.table is not None else None
    if path is not None:
        loaded = SimilarityTable.load(path)
        loaded.check(similarities.identity)
        similarities = loaded
    identity = similarities.identity
    described = {
        "model": args.preset or identity.name,
        "weights": "random" if args.preset is not None else "checkpoint",
        "layers": model.config.get_text_config().num_hidden_layers,
        "num_experts": identity.num_experts,
        "top_k": identity.top_k,
        "vocab_size": model.get_input_embeddings().num_embeddings,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "experts_implementation": getattr(model.config, "_experts_implementation", None),
        "similarity": similarities.metric,
        "table": None if path is None else similarities.fingerprint,
        "tokens": "random",
    }
    return Subject(model, similarities, described)


def _random_model(args: argparse.Namespace) -> Any:
    import torch

    from sere.bench.target import random_model

    dtype = torch.bfloat16 if args.dtype == "auto" else getattr(torch, args.dtype)
    say(f"making {args.preset} with {_layers(args)} layers and random weights")
    return random_model(
        args.preset, layers=_layers(args), dtype=dtype, device=pick_device(args.device),
        experts_implementation=args.experts_implementation, seed=args.seed,
    )  # fmt: skip


def render(records: list[Mapping[str, Any]]) -> str:
    """Return the records as a table with one row per case."""
    headers = ["B", "TPOT ms", "p20 to p80", "speedup", "p20 to p80", "experts",
               "overhead µs/layer", "% of step"]  # fmt: skip
    return case_table([(record["setting"], _row(record)) for record in records], headers)


def _row(record: Mapping[str, Any]) -> list[Any]:
    tpot, speedup, overhead, experts = (
        record[name] for name in ("tpot_ms", "speedup", "overhead", "experts")
    )
    return [
        record["batch_size"],
        *spread_cells(tpot, 2),
        *spread_cells(speedup, 3),
        f"{experts['distinct_before']:.1f} > {experts['distinct_after']:.1f}",
        None if overhead is None else f"{overhead['us_per_layer']:.0f}",
        None if overhead is None else f"{100 * overhead['ms_per_step'] / tpot['p50']:.1f}",
    ]
