"""``sere bench serve``: a vLLM engine with re-routing off and on."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sere.cli.loading import DTYPES, add_trust_argument, dtype_name, engine_checkpoint
from sere.cli.numbers import at_least, whole
from sere.cli.output import add_json_flag, emit_lines, reasons, say, spread_cells, table
from sere.cli.parser import add_command
from sere.cli.server_logs import Logs, server_logs
from sere.errors import ConfigError

if TYPE_CHECKING:
    from sere.bench.vllm.plan import EnginePlan

_DEFAULT_SETTINGS = ("sere:S=1", "sere:S=2")
_BATCH_SIZES = (8, 16, 32)

_DETAILS = """Starts vLLM in this process and sends it batches of B requests that arrive together. Settings
are those of sere eval --engine vllm. Those that differ in S and rho alone take turns, block by block, in one
engine. A floor (min_active), scale, targets and merge are part of an engine's start: such settings get an
engine of their own, one after the other. 'off' takes turns in each of them, and a ratio is always to the off
of the same engine. Beside the settings stand 'untouched' (the engine without any wrapper of ours; not with
--compile, where the operation is part of the compiled code) and for each sere setting its oracle (the same
re-routed ids, put in place without the work). random and topk settings run in an eager engine of this process
alone. With --preset, the model has a published model's layer shape, random weights (standard deviation 0.04)
and random similarities. One JSON line a case.

With --server it starts a real 'vllm serve' for each of these engines instead, on a port of this machine
alone, and sends it requests over HTTP: B at once, the next when one has ended, or R a second at random times.
Settings take turns through the server's own route. There is no oracle; 'untouched' is one more server,
started without sere (--untouched), which takes turns with each of the others and works with --compile too.
Exit code 1 if any request failed. Where something failed, the servers' logs are left beside --out."""

_EXAMPLES = """
  sere bench serve --preset qwen3-30b-a3b --layers 4 --batch-size 8 16 32 64 --out serve.jsonl
  sere bench serve MODEL --table table.safetensors --setting sere:S=2,min_active=32,scale=true --compile
  sere bench serve --preset qwen3-30b-a3b --layers 4 --server --batch-size 8 16 --untouched
  sere bench serve --preset qwen3-30b-a3b --layers 4 --server --request-rate 1 2 4
  sere bench serve --preset qwen3-30b-a3b --setting sere:S=2 --setting sere:S=2,min_active=32
  sere bench serve MODEL --table table.safetensors --server --engine-option tensor_parallel_size=2
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    from sere.bench.shapes import SHAPES

    summary = "Time a vLLM engine with re-routing off and on."
    parser = add_command(subparsers, "bench serve", summary, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a checkpoint folder, a hub name, or 'bundled'"
    )
    parser.add_argument("--preset", metavar="NAME", help=f"instead of MODEL: {', '.join(SHAPES)}")
    parser.add_argument("--layers", type=whole(1), metavar="L", help="layers of the preset (default: 4)")
    parser.add_argument("--table", metavar="FILE", help="similarity table of MODEL")
    parser.add_argument(
        "--setting", action="append", metavar="SETTING",
        help="repeatable, as for sere eval --engine vllm; off is always there (default: "
        f"{' '.join(_DEFAULT_SETTINGS)})",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=whole(1), nargs="+", metavar="B",
        help="requests at once (default: 8 16 32, or none beside --request-rate)",
    )  # fmt: skip
    parser.add_argument(
        "--prompt", type=whole(1), default=32, metavar="N", help="tokens of a prompt (default: 32)"
    )
    parser.add_argument("--steps", type=whole(1), default=32, metavar="N", help="decode steps (default: 32)")
    parser.add_argument("--rounds", type=whole(1), default=3, metavar="N", help="blocks of each (default: 3)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="bfloat16",
        help="of the weights; auto: as stored (default: bfloat16)",
    )
    parser.add_argument(
        "--engine-option", action="append", default=[], metavar="KEY=VALUE",
        help="repeatable; an option of vLLM, its value as JSON or a word, e.g. max_num_seqs=64",
    )  # fmt: skip
    add_trust_argument(parser)
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the model")
    parser.add_argument(
        "--threads", type=whole(1), metavar="N",
        help="threads of torch (default: OMP_NUM_THREADS, else all cores; vllm serve on a CPU: one less, "
        "for its scheduler)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole(), default=0, help="of weights and prompts (default: 0)")
    group = parser.add_argument_group("over HTTP")
    group.add_argument("--server", action="store_true", help="time a 'vllm serve' under load")
    group.add_argument(
        "--request-rate",
        type=at_least(0, "requests a second", above=True),
        nargs="+",
        metavar="R",
        help="requests a second",
    )
    group.add_argument(
        "--requests", type=whole(1), metavar="N", help="requests of a block (default: 32), and at least B"
    )
    group.add_argument(
        "--untouched",
        action="store_true",
        help="also time a second server without sere (memory for two models)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the JSON lines to this file")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Time, write one line a case, print the table."""
    if (args.model is None) == (args.preset is None):
        raise ConfigError("bench serve: expected either MODEL or --preset, e.g. --preset qwen3-30b-a3b")
    if args.model is not None and (args.layers is not None or args.table is None):
        raise ConfigError("bench serve: a MODEL is timed whole (no --layers) and needs its --table")
    if not args.server and (args.request_rate or args.requests is not None or args.untouched):
        raise ConfigError("bench serve: --request-rate, --requests and --untouched belong to --server")
    if args.server and args.threads is not None:
        raise ConfigError(
            "bench serve: --threads is for the engine of this process; a server's are set by vLLM, e.g. with "
            "VLLM_CPU_OMP_THREADS_BIND"
        )
    if not args.server:
        emit_lines(args, _records(args), render)
        return 0
    with server_logs(args.out) as logs:
        records = emit_lines(args, _online_records(args, logs), render_online)
        failed = sum(record["failed"] for record in records)
        if failed:
            logs.keep = True
            say(f"{failed} requests failed; the records say how{logs.where()}")
    return int(failed > 0)


def _online_records(args: argparse.Namespace, logs: Logs) -> Iterator[dict[str, Any]]:
    from sere.bench.vllm.load import Load
    from sere.bench.vllm.options import OF_SERVER, as_arguments, options_of, parse_engine_options
    from sere.bench.vllm.over_http import SERVED, OnlinePlan, bench_online
    from sere.engines.server import Server, serve
    from sere.integrations.vllm.start.versions import check_installed, check_routes

    sizes = args.batch_size or ([] if args.request_rate else _BATCH_SIZES)
    plan = OnlinePlan(
        loads=[
            *(Load(concurrency=B) for B in dict.fromkeys(sizes)),
            *(Load(request_rate=rate) for rate in dict.fromkeys(args.request_rate or ())),
        ],
        requests=32 if args.requests is None else args.requests,
        **_common(args, parse_engine_options(args.engine_option, OF_SERVER)),
    )
    check_routes(check_installed())
    most = max(plan.count(load) if load.concurrency is None else load.concurrency for load in plan.loads)
    with _model(args, plan) as (path, similarities, subject):
        options = options_of(plan, most, dtype=subject["dtype"], trust_remote_code=args.trust_remote_code)
        options |= {"served_model_name": SERVED, "disable_uvicorn_access_log": True}
        arguments = as_arguments(options)

        def start(settings: Mapping[str, Any]) -> AbstractContextManager[Server]:
            say(", ".join(["starting vllm serve", *_pairs(settings)]))
            return serve(path, _reroute(similarities, settings), logs.file("server"), *arguments)

        with ExitStack() as stack:
            untouched = None
            if args.untouched:
                say("starting vllm serve without sere")
                untouched = stack.enter_context(serve(path, None, logs.file("untouched"), *arguments))
            yield from bench_online(start, untouched, subject, plan)


def _records(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from sere.bench.vllm.in_process import ServePlan, bench_serve
    from sere.bench.vllm.options import IN_PROCESS, options_of, parse_engine_options
    from sere.engines.in_process import local_engine
    from sere.integrations.vllm.start.versions import check_installed

    plan = ServePlan(
        batch_sizes=list(dict.fromkeys(args.batch_size or _BATCH_SIZES)),
        **_common(args, parse_engine_options(args.engine_option, IN_PROCESS)),
    )
    check_installed()
    with _model(args, plan) as (path, similarities, subject):
        options = options_of(
            plan, max(plan.batch_sizes), dtype=subject["dtype"], trust_remote_code=args.trust_remote_code
        )
        options |= {"async_scheduling": False, "disable_log_stats": True}

        def start(settings: Mapping[str, Any]) -> AbstractContextManager[Any]:
            say(", ".join(["starting an engine", *_pairs(settings)]))
            return local_engine(path, _reroute(similarities, settings), threads=args.threads, **options)

        yield from bench_serve(start, subject, plan)


def _common(args: argparse.Namespace, engine_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what both plans hold."""
    from sere.cli.progress import bar
    from sere.policies.spec import parse_specs

    return {
        "settings": parse_specs(args.setting or _DEFAULT_SETTINGS), "prompt": args.prompt,
        "steps": args.steps, "rounds": args.rounds, "compiled": args.compile, "seed": args.seed,
        "engine_options": engine_options, "progress": bar,
    }  # fmt: skip


def _reroute(similarities: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of re-routing that an engine starts with."""
    return {"table": str(similarities), "select_top_k": 1, "log_seconds": 0} | dict(settings)


def _pairs(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


@contextmanager
def _model(args: argparse.Namespace, plan: EnginePlan) -> Iterator[tuple[Path, Path, dict[str, Any]]]:
    """Give the checkpoint's folder, its table and what a reader must know of both.

    A preset's are made for the time of the run.

    Raises:
        ConfigError: A setting needs what the table lacks.
    """
    with ExitStack() as stack:
        if args.preset is None:
            path, similarities = engine_checkpoint(args), Path(args.table)
        else:
            path, similarities = stack.enter_context(_random(args))
        yield path, similarities, _subject(args, plan, path, similarities)


@contextmanager
def _random(args: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """Make a preset's checkpoint and its table."""
    import torch

    from sere.bench.target import random_model, random_table

    layers = args.layers if args.layers is not None else 2 if args.preset == "tiny" else 4
    dtype = torch.bfloat16 if args.dtype == "auto" else getattr(torch, args.dtype)
    say(f"making {args.preset} with {layers} layers and random weights")
    with tempfile.TemporaryDirectory(prefix="sere-bench-") as folder:
        model = random_model(args.preset, layers=layers, dtype=dtype, seed=args.seed)
        path, similarities = Path(folder) / "model", Path(folder) / "table.safetensors"
        model.save_pretrained(path)
        random_table(model, seed=args.seed).save(similarities)
        del model
        yield path, similarities


def _subject(args: argparse.Namespace, plan: EnginePlan, path: Path, similarities: Path) -> dict[str, Any]:
    """Say what is timed, as far as checkpoint and table tell."""
    from sere.checkpoints import load_config
    from sere.engines.transformers import check_settings
    from sere.table import SimilarityTable

    table, trusted = SimilarityTable.load(similarities), args.trust_remote_code
    config = load_config(path, trust_remote_code=trusted).get_text_config()
    check_settings(plan.settings, table)
    return {
        "model": args.preset or table.identity.name,
        "weights": "random" if args.preset is not None else "checkpoint",
        "layers": config.num_hidden_layers,
        "E": table.identity.num_experts,
        "K": table.identity.top_k,
        "vocab_size": config.vocab_size,
        "dtype": dtype_name(path, args.dtype, trust_remote_code=trusted),
        "similarity": table.metric,
    }


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the records as a table with one row a case."""
    headers = ["B", "started with", "setting", "TPOT ms", "p20 to p80", "off/this", "p20 to p80", "tokens/s",
               "TTFT ms", "experts", "MB read", "own µs/layer", "own %"]  # fmt: skip
    return table([_row(record) for record in records], headers) + _reasons(records)


def _reasons(records: Sequence[Mapping[str, Any]]) -> str:
    return reasons((record["case"], record["nothing_changed"]) for record in records)


def _row(record: Mapping[str, Any]) -> list[Any]:
    tpot, ratio, experts = record["tpot_ms"], record["ratio_off_to_this"], record["experts"]
    cost, read = record["own_cost"], record["expert_bytes_per_step"]
    return [
        record["batch_size"],
        ", ".join(_pairs(record["config"]["start"])) or None,
        record["setting"],
        *spread_cells(tpot, 2),
        *spread_cells(ratio, 3),
        f"{record['tokens_per_s']['p50']:.0f}",
        f"{record['ttft_ms']['p50']:.0f}",
        None if experts is None else f"{experts['before']:.1f} > {experts['after']:.1f}",
        None if read is None else f"{read / 1e6:.0f}",
        None if cost is None else f"{cost['us_per_layer']:.0f}",
        None if cost is None else f"{100 * cost['ms_per_step'] / tpot['p50']:.1f}",
    ]


def render_online(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the records of a server under load as a table with one row a case."""
    headers = ["requests", "started with", "setting", "TPOT ms", "p20 to p80", "off/this",
               "p20 to p80", "tokens/s", "requests/s", "TTFT ms", "p90", "experts", "rows", "MB read",
               "failed"]  # fmt: skip
    return table([_online_row(record) for record in records], headers) + _reasons(records)


def _online_row(record: Mapping[str, Any]) -> list[Any]:
    tpot, ratio, ttft = record["tpot_ms"], record["ratio_off_to_this"], record["ttft_ms"]
    experts, read = record["experts"], record["expert_bytes_per_step"]
    return [
        record["case"].partition(",")[0],
        ", ".join(_pairs(record["config"]["start"])) or None,
        record["setting"],
        *spread_cells(tpot, 2),
        *spread_cells(ratio, 3),
        f"{record['tokens_per_s']['p50']:.0f}",
        f"{record['requests_per_s']['p50']:.2f}",
        f"{ttft['p50']:.0f}",
        f"{ttft['p90']:.0f}",
        None if experts is None else f"{experts['before']:.1f} > {experts['after']:.1f}",
        None if experts is None else f"{experts['rows']:.1f}",
        None if read is None else f"{read / 1e6:.0f}",
        record["failed"],
    ]
