"""``sere eval``: what re-routing costs in right answers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sere.bundled import BUNDLED
from sere.cli.loading import add_model_arguments, load
from sere.cli.numbers import whole
from sere.cli.output import add_json_flag, emit, reasons, say, table
from sere.cli.parser import add_command
from sere.errors import ConfigError
from sere.files import check_writable, write_json

_DEFAULT_SETTINGS = ("sere:S=1", "random:S=1", "topk:S=1")

_DETAILS = """Decodes held-out questions in steps of B rows under each setting and counts the right
answers: exact match per task with 95 % intervals, the paired difference to the unmodified model at the
same batch size, perplexity and KL divergence on held-out English. A setting is a policy's name, then
its options: off, sere:S=1,rho=0.3,targets=active,min_active=8, random:S=1 (the control: secondary slots
go to a random primary expert), topk:S=1 (secondary slots are dropped), oea:S=2, xshare:budget=16,
lynx:drop=0.5. S, rho, scale and drop may also be written select_top_k, threshold, use_scale and
drop_share. With --engine vllm, B is the number of requests at once, settings that differ in more than S
and rho each get an engine of their own, one after the other, and oea, xshare and lynx are refused.
Interrupted, the same command with --out continues behind the last finished case."""

_EXAMPLES = """
  sere eval bundled --batch-size 1 16 --setting sere:S=1,min_active=8 --setting random:S=1 --out eval.json
  sere eval MODEL --table table.safetensors --setting sere:S=2,min_active=32,scale=true --questions 50
  sere eval bundled --batch-size 16 --tasks addition sorting --no-text --json
  sere eval bundled --engine vllm --batch-size 8 64 --setting sere:S=2,min_active=32,scale=true
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "Count right answers at several settings and batch sizes."
    parser = add_command(subparsers, "eval", summary, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help=f"a checkpoint folder, a hub name, or '{BUNDLED}'")
    parser.add_argument(
        "--table", metavar="FILE", help=f"similarity table (for '{BUNDLED}': calibrates if none is given)"
    )
    parser.add_argument(
        "--metric", metavar="NAME",
        help=f"of the table calibrated for '{BUNDLED}' (default: projection)",
    )  # fmt: skip
    parser.add_argument(
        "--setting", action="append", metavar="SETTING",
        help=f"repeatable; off is always there (default: {' '.join(_DEFAULT_SETTINGS)})",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=whole(1), nargs="+", default=[1, 16], metavar="B", help="(default: 1 16)"
    )
    parser.add_argument(
        "--questions", type=whole(1), default=100, metavar="N", help="per task (default: 100)"
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="(default: all)")
    parser.add_argument(
        "--passages", type=whole(0), default=100, metavar="N", help="of English (default: 100)"
    )
    parser.add_argument("--no-text", dest="passages", action="store_const", const=0, help="no English")
    parser.add_argument("--max-new-tokens", type=whole(1), default=256, metavar="N", help="(default: 256)")
    parser.add_argument("--seed", type=whole(), default=0, help="of questions and control (default: 0)")
    parser.add_argument(
        "--engine", choices=("transformers", "vllm"), default="transformers",
        help="what decodes; vllm takes off, sere, random and topk settings, and reads no English",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the whole result as JSON")
    add_model_arguments(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the record, print the tables."""
    from sere.eval.settings import parse_settings

    settings = parse_settings(args.setting or _DEFAULT_SETTINGS)
    # An engine of vLLM starts with a table, whatever is measured in it.
    needed = args.engine == "vllm" or any(setting.needs_table for setting in settings)
    if args.table is None and args.model != BUNDLED and needed:
        raise ConfigError(
            "--table: sere settings need a similarity table, and so does --engine vllm; make one with "
            "sere calibrate"
        )
    if args.metric is not None and (args.table is not None or args.model != BUNDLED):
        raise ConfigError(
            f"--metric: a table that is given has its metric; only for '{BUNDLED}' without --table"
        )
    if args.out is not None:
        check_writable(args.out)
    record = _evaluate(args, settings)
    if args.out is not None:
        write_json(args.out, record)
        say(f"wrote {args.out}")
    emit(args, record, render)
    return 0


def _evaluate(args: argparse.Namespace, settings: list[Any]) -> dict[str, Any]:
    from sere.cli.progress import bar
    from sere.eval.questions import held_out, held_out_english
    from sere.eval.run import Plan, evaluate

    plan = Plan(
        settings=settings,
        batch_sizes=list(dict.fromkeys(args.batch_size)),
        questions=held_out(args.questions, tasks=args.tasks, seed=args.seed),
        passages=held_out_english(args.passages, seed=args.seed) if _reads_english(args) else (),
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    partial = None if args.out is None else args.out.with_name(f".{args.out.name}.partial")
    if args.engine == "vllm":
        return _on_vllm(args, plan, partial)
    model, tokenizer = load(args)
    similarities = _table(args, model, tokenizer)
    return evaluate(model, tokenizer, plan, table=similarities, checkpoint=partial, progress=bar)


def _reads_english(args: argparse.Namespace) -> bool:
    return bool(args.passages) and args.engine == "transformers"


def _on_vllm(args: argparse.Namespace, plan: Any, partial: Path | None) -> dict[str, Any]:
    """Evaluate with engines of vLLM in this process; their table is the file's, or made from the weights."""
    from tempfile import TemporaryDirectory

    from sere.cli.loading import checkpoint_path, dtype_name, tokenizer_of
    from sere.cli.progress import bar
    from sere.eval.checkpoint import files_digest
    from sere.eval.engines import check_settings
    from sere.eval.vllm import evaluate_engine
    from sere.integrations.vllm.local import local_engine
    from sere.integrations.vllm.versions import check_installed
    from sere.table import SimilarityTable

    check_settings(plan.settings)
    check_installed()
    path = checkpoint_path(args)
    tokenizer = tokenizer_of(path, args)
    dtype = dtype_name(path, args.dtype, trust_remote_code=args.trust_remote_code)
    options: dict[str, Any] = {
        "skip_tokenizer_init": True, "dtype": dtype, "enforce_eager": True, "disable_log_stats": True,
        "max_num_seqs": max(plan.batch_sizes), "enable_prefix_caching": False, "seed": args.seed,
        "trust_remote_code": args.trust_remote_code,
    }  # fmt: skip
    with TemporaryDirectory(prefix="sere-eval-") as folder:
        place = Path(args.table) if args.table is not None else Path(folder) / "table.safetensors"
        if args.table is None:
            model, _ = load(args)
            _table(args, model, tokenizer).save(place)
            del model
        fixed = {"table": str(place), "select_top_k": 1, "log_seconds": 0}
        return evaluate_engine(
            lambda settings: local_engine(path, {**fixed, **settings}, **options),
            tokenizer, plan, table=SimilarityTable.load(place), dtype=dtype, weights=files_digest(path),
            checkpoint=partial, progress=bar,
        )  # fmt: skip


def _table(args: argparse.Namespace, model: Any, tokenizer: Any) -> Any:
    """Return the similarity table: the file's, or for the bundled model one calibrated now."""
    if args.table is not None:
        from sere.table import SimilarityTable

        return SimilarityTable.load(args.table)
    if args.model != BUNDLED:
        return None
    from sere.eval.calibration import calibrate_on_tasks

    say("no --table: calibrating the bundled model")
    return calibrate_on_tasks(model, tokenizer, metric=args.metric or "projection", seed=args.seed)


def render(record: Mapping[str, Any]) -> str:
    """Return the result as two tables: all tasks together, then each task."""
    cases = record["cases"]
    headers = ["B", "setting", "experts", "moved %", "right %", "95 %", "difference", "95 %", "tokens",
               "perplexity", "KL"]  # fmt: skip
    overall = table([_overall(case) for case in cases], headers)
    names = [name for name in cases[0]["tasks"] if name != "all"]
    rows = [
        [
            case["batch_size"],
            case["setting"],
            *(f"{100 * case['tasks'][name]['share']['value']:.1f}" for name in names),
        ]
        for case in cases
    ]
    counts = {case["tasks"][name]["n"] for case in cases for name in names}
    title = f"Right answers by task, % ({min(counts)} questions each)"
    notes = (
        "experts: distinct per layer and step, before > after. difference: to off at the same B, points,\n"
        "paired. tokens: mean answer length. KL: to the unmodified model, nats per token of English."
    )
    notes += reasons(
        (f"B={case['batch_size']} {case['setting']}", case.get("nothing_changed")) for case in cases
    )
    return f"{overall}\n{notes}\n\n{title}\n{table(rows, ['B', 'setting', *names])}"


def _overall(case: Mapping[str, Any]) -> list[Any]:
    everything, experts, text = case["tasks"]["all"], case["experts"], case["text"] or {}
    difference = everything.get("difference")
    return [
        case["batch_size"],
        case["setting"],
        _expert_counts(experts),
        None if experts["moved"] is None else f"{100 * experts['moved']:.0f}",
        f"{100 * everything['share']['value']:.1f}",
        _range(everything["share"]),
        None if difference is None else f"{100 * difference['value']:+.1f}",
        None if difference is None else _range(difference),
        f"{case['answer_tokens']:.1f}",
        f"{text['perplexity']:.3f}" if text else None,
        f"{text['kl']:.4f}" if text else None,
    ]


def _expert_counts(experts: Mapping[str, Any]) -> str | None:
    if experts["before"] is None:
        return None
    return f"{experts['before']:.1f} > {experts['after']:.1f}"


def _range(interval: Mapping[str, float]) -> str:
    return f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}"
