"""``sere bench serve``: a vLLM engine with re-routing off and on."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sere.cli.loading import checkpoint_path
from sere.cli.output import add_json_flag, emit_lines, say, spread_cells, table
from sere.cli.parser import add_command
from sere.errors import ConfigError

_DEFAULT_SETTINGS = ("sere:S=1", "sere:S=2")
_BATCH_SIZES = (8, 16, 32)

_DETAILS = """Starts vLLM in this process and sends it batches of B requests that arrive together. All
settings take turns, block by block, in one run of one engine. Beside them stand 'untouched' (the engine
without any wrapper of ours; not with --compile, where the operation is part of the compiled code) and for
each setting its oracle (the same re-routed ids, put in place without the work). With --preset, the model has
a published model's layer shape, random weights (standard deviation 0.04) and random similarities. One JSON
line a case.

With --server it starts a real 'vllm serve' instead, on a port of this machine alone, and sends it requests
over HTTP: B at once, the next when one has ended, or R a second at random times. Settings take turns
through the server's own route. There is no oracle; 'untouched' is a second server, started without sere
(--untouched), and works with --compile too. Exit code 1 if any request failed."""

_EXAMPLES = """
  sere bench serve --preset qwen3-30b-a3b --layers 4 --batch-size 8 16 32 64 --out serve.jsonl
  sere bench serve MODEL --table table.safetensors --setting sere:S=2,rho=0.3 --compile --threads 1
  sere bench serve --preset qwen3-30b-a3b --layers 4 --server --batch-size 8 16 --untouched
  sere bench serve --preset qwen3-30b-a3b --layers 4 --server --request-rate 1 2 4
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    from sere.bench.shapes import SHAPES

    summary = "Time a vLLM engine with re-routing off and on."
    parser = add_command(subparsers, "bench-serve", summary, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a checkpoint folder or a hub name")
    parser.add_argument("--preset", metavar="NAME", help=f"instead of MODEL: {', '.join(SHAPES)}")
    parser.add_argument("--layers", type=int, metavar="L", help="layers of the preset (default: 4)")
    parser.add_argument("--table", metavar="FILE", help="similarity table of MODEL")
    parser.add_argument(
        "--setting", action="append", metavar="SETTING",
        help=f"repeatable, with S and rho; off is always there (default: {' '.join(_DEFAULT_SETTINGS)})",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, nargs="+", metavar="B",
        help="requests at once (default: 8 16 32, or none beside --request-rate)",
    )  # fmt: skip
    parser.add_argument(
        "--prompt", type=int, default=32, metavar="N", help="tokens of a prompt (default: 32)"
    )
    parser.add_argument("--steps", type=int, default=32, metavar="N", help="decode steps (default: 32)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="blocks of each (default: 3)")
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the model")
    parser.add_argument(
        "--threads", type=int, metavar="N",
        help="threads of torch (default: OMP_NUM_THREADS, else all cores; vllm serve on a CPU: one less, "
        "for its scheduler)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts (default: 0)")
    group = parser.add_argument_group("over HTTP")
    group.add_argument("--server", action="store_true", help="time a 'vllm serve' under load")
    group.add_argument("--request-rate", type=float, nargs="+", metavar="R", help="requests a second")
    group.add_argument(
        "--requests", type=int, metavar="N", help="requests of a block (default: 32), and at least B"
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
    if args.threads is not None and args.threads < 1:
        raise ConfigError(f"bench serve: --threads: expected at least 1, got {args.threads}")
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
    failed = sum(record["failed"] for record in emit_lines(args, _online_records(args), render_online))
    if failed:
        say(f"{failed} requests failed; the records say how")
    return int(failed > 0)


def _online_records(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from sere.bench.load import Load
    from sere.bench.online import SERVED, OnlinePlan, bench_online
    from sere.cli.progress import bar
    from sere.eval.settings import parse_settings
    from sere.integrations.vllm.server import serve

    sizes = args.batch_size or ([] if args.request_rate else _BATCH_SIZES)
    plan = OnlinePlan(
        settings=parse_settings(args.setting or _DEFAULT_SETTINGS),
        loads=[
            *(Load(concurrency=B) for B in dict.fromkeys(sizes)),
            *(Load(request_rate=rate) for rate in dict.fromkeys(args.request_rate or ())),
        ],
        prompt=args.prompt, steps=args.steps, rounds=args.rounds, seed=args.seed, progress=bar,
        requests=32 if args.requests is None else args.requests,
    )  # fmt: skip
    most = max(plan.count(load) if load.concurrency is None else load.concurrency for load in plan.loads)
    arguments = [
        "--served-model-name", SERVED, "--skip-tokenizer-init", "--dtype", "bfloat16",
        "--seed", str(args.seed), "--max-num-seqs", str(most),
        "--max-model-len", str(plan.prompt + plan.steps + 8),
        "--max-num-batched-tokens", str(max(2048, most * plan.prompt)), "--no-enable-prefix-caching",
        "--disable-uvicorn-access-log", *([] if args.compile else ["--enforce-eager"]),
    ]  # fmt: skip
    with _model(args) as (path, similarities), tempfile.TemporaryDirectory(prefix="sere-bench-") as logs:
        settings = {"table": str(similarities), "select_top_k": 1, "log_seconds": 0}
        say("starting vllm serve")
        first, second = Path(logs) / "server.log", Path(logs) / "untouched.log"
        with (
            serve(path, None, second, *arguments) if args.untouched else nullcontext() as untouched,
            serve(path, settings, first, *arguments) as server,
        ):
            subject = _stored_subject(args, path, similarities)
            yield from bench_online(server, untouched, subject, plan, compiled=args.compile)


def _stored_subject(args: argparse.Namespace, path: Path, similarities: Path) -> dict[str, Any]:
    """Say what is timed, as far as checkpoint and table tell."""
    from transformers import AutoConfig

    from sere.table import SimilarityTable

    table, config = SimilarityTable.load(similarities), AutoConfig.from_pretrained(path).get_text_config()
    return {
        "model": args.preset or table.identity.name,
        "weights": "random" if args.preset is not None else "checkpoint",
        "layers": config.num_hidden_layers,
        "E": table.identity.E,
        "K": table.identity.K,
        "vocab_size": config.vocab_size,
        "dtype": "bfloat16",
        "similarity": table.metric,
    }


def _records(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from sere.bench.serve import ServePlan, bench_serve
    from sere.cli.progress import bar
    from sere.eval.settings import parse_settings
    from sere.integrations.vllm.local import local_engine

    plan = ServePlan(
        settings=parse_settings(args.setting or _DEFAULT_SETTINGS),
        batch_sizes=list(dict.fromkeys(args.batch_size or _BATCH_SIZES)),
        prompt=args.prompt, steps=args.steps, rounds=args.rounds, seed=args.seed, progress=bar,
    )  # fmt: skip
    most = max(plan.batch_sizes)
    options: dict[str, Any] = {
        "skip_tokenizer_init": True, "dtype": "bfloat16", "enforce_eager": not args.compile,
        "max_model_len": plan.prompt + plan.steps + 8, "max_num_seqs": most, "seed": args.seed,
        "max_num_batched_tokens": max(2048, most * plan.prompt), "enable_prefix_caching": False,
        "async_scheduling": False, "disable_log_stats": True,
    }  # fmt: skip
    with _model(args) as (path, similarities):
        settings = {"table": str(similarities), "select_top_k": 1, "log_seconds": 0}
        with local_engine(path, settings, threads=args.threads, **options) as llm:
            yield from bench_serve(llm, _loaded_subject(args, path, similarities, llm), plan)


@contextmanager
def _model(args: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """Give the checkpoint's folder and its table; a preset's are made for the time of the run."""
    if args.preset is None:
        yield checkpoint_path(args.model), Path(args.table)
        return
    from sere.bench.subject import random_model, random_table

    layers = args.layers if args.layers is not None else 2 if args.preset == "tiny" else 4
    say(f"making {args.preset} with {layers} layers and random weights")
    with tempfile.TemporaryDirectory(prefix="sere-bench-") as folder:
        model = random_model(args.preset, layers=layers, seed=args.seed)
        path, similarities = Path(folder) / "model", Path(folder) / "table.safetensors"
        model.save_pretrained(path)
        random_table(model, seed=args.seed).save(similarities)
        del model
        yield path, similarities


def _loaded_subject(args: argparse.Namespace, path: Path, similarities: Path, llm: Any) -> dict[str, Any]:
    """Say what is timed, with what the engine alone can tell."""
    from sere.integrations.vllm.local import session_of

    session = session_of(llm)
    return _stored_subject(args, path, similarities) | {
        "moe_layers": len(session.layers),
        "bytes_per_expert": session.expert_bytes(),
        "expert_kernel": session.kernel,
    }


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the records as a table with one row a case."""
    headers = ["B", "setting", "TPOT ms", "p20 to p80", "off/this", "p20 to p80", "tokens/s", "TTFT ms",
               "experts", "MB read", "own µs/layer", "own %"]  # fmt: skip
    return table([_row(record) for record in records], headers)


def _row(record: Mapping[str, Any]) -> list[Any]:
    tpot, ratio, experts = record["tpot_ms"], record["ratio_off_to_this"], record["experts"]
    cost, read = record["own_cost"], record["expert_bytes_per_step"]
    return [
        record["batch_size"],
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
    headers = ["requests", "setting", "TPOT ms", "p20 to p80", "off/this", "p20 to p80", "tokens/s",
               "requests/s", "TTFT ms", "p90", "experts", "rows", "MB read", "failed"]  # fmt: skip
    return table([_online_row(record) for record in records], headers)


def _online_row(record: Mapping[str, Any]) -> list[Any]:
    tpot, ratio, ttft = record["tpot_ms"], record["ratio_off_to_this"], record["ttft_ms"]
    experts, read = record["experts"], record["expert_bytes_per_step"]
    return [
        record["case"].partition(",")[0],
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
