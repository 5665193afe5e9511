"""``sere bench serve``: a vLLM engine with re-routing off and on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sere.cli.bench.arguments import add_target_arguments, depths_of
from sere.cli.bench.failures import Failures
from sere.cli.bench.serve_engines import DECODE, EngineRun
from sere.cli.bench.serve_online import online_records
from sere.cli.bench.serve_tables import render, render_online
from sere.cli.loading import DTYPES, add_table_argument, add_trust_argument
from sere.cli.numbers import at_least, whole
from sere.cli.output import add_json_flag, emit_lines, say
from sere.cli.parser import add_command, add_setting_argument
from sere.cli.report_file import add_report_argument, check_report, save_report
from sere.cli.server_logs import Logs, server_logs
from sere.cli.settings import DEFAULT
from sere.errors import ConfigError

_DETAILS = """Starts vLLM and sends it batches of B requests that arrive together. Settings that differ
only in what a running engine can change (select_top_k, threshold, active_experts) take turns, block by
block, in one engine. All other options, such as use_scale, are fixed when an engine starts: settings that
differ in them get separate engines. 'off' takes turns in each engine, and a speedup is always relative to
'off' in the same engine. Each engine has a process of its own. If memory allows, all are alive at once and
take turns; else they run one after the other, twice each (--visits), the second time in reverse order. If
one fails, the others go on, and the exit code is 1.

With --vanilla, one more engine never loads sere: "over vanilla" compares with it. For each sere setting
'replay' uses recorded ids and pairs, without the work of computing them. Rules other than sere cannot be
combined with --compile or --server. With --preset, the model has a published model's layer shape, random
weights (standard deviation 0.04) and random similarities; --depths times it at two depths. --load times other
loads than decoding: the first token of one prompt of 32, 2048 or 8192 tokens (ttft-32, ttft-2k, ttft-8k),
four prompts of 2048 tokens (prefill), and 16 requests that decode while 5 prompts of 512 tokens arrive
(mixed). With --count-experts, each engine takes turns with one that counts the uses of each expert (setting
count_experts), and a second table says what that costs. --out gets one JSON line per case; after an
interruption, the same command continues.

With --server, each engine is a real 'vllm serve' on a local port that gets requests over HTTP: B
concurrent requests, each replaced when it ends, or R requests per second at random times. Settings are
switched over HTTP. There is no replay. With --vanilla, a second server, started without sere, takes
turns with each of the others. The exit code is 1 if any request failed. If anything failed, the logs of
vLLM are kept beside --out."""

_EXAMPLES = """
  sere bench serve --preset qwen3-30b-a3b --layers 4 --batch-size 8 16 32 64 --out serve.jsonl
  sere bench serve MODEL --compile --vanilla
  sere bench serve --preset qwen3-30b-a3b --depths 4 8 --vanilla --load ttft-2k mixed --out serve.jsonl
  sere bench serve --preset qwen3-30b-a3b --layers 4 --server --batch-size 8 16 --vanilla
  sere bench serve --preset qwen3-30b-a3b --layers 4 --server --request-rate 1 2 4
  sere bench serve MODEL --setting sere --setting sere:active_experts=24
  sere bench serve MODEL --compile --count-experts --no-replay --rounds 10
  sere bench serve MODEL --server --engine-option tensor_parallel_size=2
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    from sere.bench.vllm.engine_loads import NAMED_LOADS

    summary = "Time a vLLM engine with re-routing off and on."
    parser = add_command(subparsers, "serve", summary, run, details=_DETAILS, examples=_EXAMPLES)
    add_target_arguments(parser)
    add_table_argument(parser, "the model's own")
    add_setting_argument(parser, [DEFAULT], done="timed")
    parser.add_argument(
        "--batch-size", type=whole(1), nargs="+", metavar="B",
        help="concurrent requests (default: 8 16 32, or none with --request-rate)",
    )  # fmt: skip
    parser.add_argument(
        "--prompt", type=whole(1), default=32, metavar="N", help="tokens per prompt (default: 32)"
    )
    parser.add_argument("--steps", type=whole(1), default=32, metavar="N", help="decode steps (default: 32)")
    parser.add_argument(
        "--rounds", type=whole(1), default=3, metavar="N", help="blocks per setting (default: 3)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="bfloat16",
        help="dtype of the weights; auto: as stored (default: bfloat16)",
    )
    parser.add_argument(
        "--engine-option", action="append", default=[], metavar="KEY=VALUE",
        help="an option of vLLM, its value as JSON or a word, e.g. max_num_seqs=64; repeatable",
    )  # fmt: skip
    add_trust_argument(parser)
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the model")
    parser.add_argument(
        "--threads", type=whole(1), metavar="N",
        help="threads of torch (default: OMP_NUM_THREADS, else all cores; vllm serve on a CPU: one fewer, "
        "which is left to its scheduler)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole(), default=0, help="seed of weights and prompts (default: 0)")
    parser.add_argument(
        "--vanilla", action="store_true", help="also time an engine or server that never loads sere"
    )
    engines = parser.add_argument_group("engines")
    engines.add_argument(
        "--load", nargs="+", choices=(DECODE, *NAMED_LOADS), metavar="LOAD",
        help=f"what is timed: {', '.join((DECODE, *NAMED_LOADS))} (default: {DECODE})",
    )  # fmt: skip
    engines.add_argument(
        "--visits", type=whole(1), default=2, metavar="N",
        help="how often an engine is started, if memory is too small for all at once (default: 2)",
    )  # fmt: skip
    engines.add_argument(
        "--no-replay",
        dest="replay",
        action="store_false",
        help="do not time replays of recorded ids and pairs",
    )
    engines.add_argument(
        "--count-experts", action="store_true",
        help="also time each setting in an engine that counts the uses of each expert (count_experts)",
    )  # fmt: skip
    group = parser.add_argument_group("over HTTP")
    group.add_argument("--server", action="store_true", help="time a 'vllm serve' under load")
    group.add_argument(
        "--request-rate",
        type=at_least(0, "requests per second", above=True),
        nargs="+",
        metavar="R",
        help="requests per second",
    )
    group.add_argument(
        "--requests", type=whole(1), metavar="N", help="requests per block, at least B (default: 32)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the JSON lines to this file")
    add_report_argument(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Time, write one line per case, print the table."""
    depths_of(args)
    _check_ways(args)
    check_report(args)
    with server_logs(args.out) as logs:
        if not args.server:
            return _engines(args, logs)
        return _servers(args, logs)


def _servers(args: argparse.Namespace, logs: Logs) -> int:
    failures = Failures()
    shown = emit_lines(args, online_records(args, logs, failures), render_online)
    save_report(args, shown)
    failed = sum(record["failed"] for record in shown)
    if failed or failures.errors:
        logs.keep = True
        lost = [f"{failed} requests failed; the records say how"] * bool(failed)
        say(f"{'; '.join(lost + [failures.named()] * bool(failures.errors))}{logs.where()}")
    return int(failed > 0 or bool(failures.errors))


def _engines(args: argparse.Namespace, logs: Logs) -> int:
    engines = EngineRun(args, logs)
    shown = emit_lines(args, engines.records(), lambda records: render([*engines.earlier, *records]))
    save_report(args, [*engines.earlier, *shown])
    if engines.failures.errors:
        logs.keep = True
        say(f"{engines.failures.named()}{logs.where()}")
    return int(bool(engines.failures.errors))


def _check_ways(args: argparse.Namespace) -> None:
    """Refuse arguments that only the other way to time has.

    Raises:
        ConfigError: There are such.
    """
    if not args.server and (args.request_rate or args.requests is not None):
        raise ConfigError("bench serve: --request-rate and --requests need --server")
    if args.server and args.count_experts:
        raise ConfigError(
            "bench serve: --count-experts compares engines that take turns, and servers run one after the "
            "other; leave it out, or --server"
        )
    if args.server and (args.load or args.depths):
        raise ConfigError(
            "bench serve: --load and --depths time engines step by step; leave them out, or --server"
        )
    if args.server and args.threads is not None:
        raise ConfigError(
            "bench serve: --threads sets the threads of engines, not of --server; set those of vLLM, "
            "e.g. with VLLM_CPU_OMP_THREADS_BIND"
        )
