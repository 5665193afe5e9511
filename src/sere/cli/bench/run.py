"""``sere bench run``: time per output token, off against on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from sere.cli.bench.arguments import add_target_arguments, depths_of
from sere.cli.bench.counted_cells import experts_cell, pairs_cell
from sere.cli.bench.depth_table import render_depths
from sere.cli.loading import (
    add_model_arguments,
    add_table_argument,
    checkpoint_path,
    load_on_device,
    pick_device,
    table_path,
)
from sere.cli.numbers import whole
from sere.cli.output import add_json_flag, case_table, emit_lines, say, spread_cell
from sere.cli.parser import add_command, add_setting_argument
from sere.cli.report_file import add_report_argument, check_report, save_report
from sere.cli.settings import DEFAULT
from sere.errors import ConfigError

_DETAILS = """Times decode steps of B rows with re-routing off and on, in Transformers. In one run, all
settings take turns, block by block, and decode the same tokens. The table shows medians with the 20th
and 80th percentile, for the times and for the speedups over off (above 1 is faster). With --preset, the
model has a published model's layer shape and random weights (standard deviation 0.04), and the
similarities are random: neither changes how long a step takes. For each sere setting 'replay' uses recorded
ids and pairs, without the work of computing them. --depths times the preset with two numbers
of layers, one after the other, and adds the time per layer and what that gives for the complete model.
--out gets one JSON line per case."""

_EXAMPLES = """
  sere bench --preset qwen3-30b-a3b --layers 4 --batch-size 1 8 16 32 --out benchmarks/results/bench.jsonl
  sere bench run MODEL --setting sere --setting sere:active_experts=24 --setting topk:select_top_k=2
  sere bench --preset qwen3-30b-a3b --depths 4 8 --batch-size 8 16
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
    parser.add_argument(
        "--no-replay",
        dest="replay",
        action="store_false",
        help="do not time replays of recorded ids and pairs",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the JSON lines to this file")
    add_report_argument(parser)
    add_model_arguments(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Time, write one line per case, print the table."""
    _check_word(args.model)
    depths_of(args)
    check_report(args)
    save_report(args, emit_lines(args, _records(args), render))
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
    from sere.bench.run import BenchPlan, bench, bench_depths
    from sere.cli.progress_bar import bar
    from sere.policies.spec import parse_specs

    plan = BenchPlan(
        settings=parse_specs(args.setting or [DEFAULT]),
        batch_sizes=list(dict.fromkeys(args.batch_size)),
        prompt=args.prompt,
        steps=args.steps,
        rounds=args.rounds,
        seed=args.seed,
        replay=args.replay,
        progress=bar,
    )
    depths = depths_of(args)
    if len(depths) < 2:
        yield from bench(_subject(args, *depths), plan)
        return
    # One after the other: each model is freed before the next is made.
    yield from bench_depths([partial(_subject, args, layers) for layers in depths], plan)


def _subject(args: argparse.Namespace, layers: int | None = None) -> Any:
    """Load the model, or make the preset with so many layers."""
    from sere.bench.shapes import SHAPES
    from sere.bench.target import Subject, random_table
    from sere.table import SimilarityTable

    model = load_on_device(checkpoint_path(args), args) if layers is None else _random_model(args, layers)
    similarities = random_table(model, seed=args.seed, factors=True)
    path = table_path(args) if args.model is not None or args.table is not None else None
    if path is not None:
        loaded = SimilarityTable.load(path)
        loaded.check(similarities.identity)
        similarities = loaded
    identity = similarities.identity
    made = model.config.get_text_config().num_hidden_layers
    described = {
        "model": args.preset or identity.name,
        "weights": "random" if args.preset is not None else "checkpoint",
        "layers": made,
        "published_layers": made if args.preset is None else SHAPES[args.preset].layers,
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


def _random_model(args: argparse.Namespace, layers: int) -> Any:
    import torch

    from sere.bench.target import random_model

    dtype = torch.bfloat16 if args.dtype == "auto" else getattr(torch, args.dtype)
    say(f"making {args.preset} with {layers} layers and random weights")
    return random_model(
        args.preset, layers=layers, dtype=dtype, device=pick_device(args.device),
        experts_implementation=args.experts_implementation, seed=args.seed,
    )  # fmt: skip


def render(records: list[Mapping[str, Any]]) -> str:
    """Return the records as a table with one row per case."""
    several = len({record["subject"]["layers"] for record in records}) > 1
    headers = ["B", *["layers"] * several, "TPOT ms", "speedup", "experts", "pairs", "overhead"]
    rows = [(record["setting"], _row(record, several)) for record in records]
    table = case_table(rows, headers, keys=1 + several)
    return table + render_depths(records, lambda record: f"B={record['batch_size']}")


def _row(record: Mapping[str, Any], depth: bool) -> list[Any]:
    tpot, speedup, overhead, experts = (
        record[name] for name in ("tpot_ms", "speedup", "overhead", "experts")
    )
    return [
        record["batch_size"],
        *[record["subject"]["layers"]] * depth,
        spread_cell(tpot, 2),
        spread_cell(speedup, 3),
        experts_cell(experts),
        pairs_cell(record.get("flattening")),
        None if overhead is None else f"{100 * overhead['ms_per_step'] / tpot['p50']:.1f} %",
    ]
