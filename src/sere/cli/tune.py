"""``sere tune``: the loss that a person accepts in, the fewest experts out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sere.bundled import BUNDLED, knows_tasks
from sere.cli.loading import (
    add_model_arguments,
    add_table_argument,
    load,
    needed_table,
    table_path,
    table_to_write,
)
from sere.cli.numbers import at_least, whole
from sere.cli.output import add_json_flag, emit, say
from sere.cli.parser import add_command
from sere.cli.report_file import add_report_argument, check_report, save_report
from sere.cli.serve_line import say_how_to_serve
from sere.cli.tune_tables import render, render_simulated
from sere.errors import ConfigError
from sere.files import check_writable, holds_json, keep_other_files, write_json

if TYPE_CHECKING:
    from sere.table import SimilarityTable
    from sere.tune.plan import TunePlan

_DETAILS = """You say how much loss you accept; this finds, for each number of rows in a decode step, the
fewest experts that a layer has to read, and stores the result in the table as a tier, with its evidence.
Engines use the tier "balanced" where no settings are given, and others by name.

The loss is the divergence (KL, nats per token) from the unmodified model, on continuations that the model
writes itself. They continue:

--prompts FILE: prompts, as for sere eval. Give 256, of at least 100 the
  intervals say something. One half is tuned on, the other verifies.
--texts FILE: pieces of texts, as for sere calibrate.
--questions FILE: questions with answers, as for sere eval: needed for
  --max-loss.
none of them: prompts that the model writes itself, sampled at temperature 1.
  The bundled model, and others with its tokenizer, get sere's own tasks.

Without --max-kl, --max-loss and --speedup, the tiers safe, balanced and fast are tuned, which accept a KL
of 0.0005, 0.002 and 0.006 or, where questions have answers (--questions, sere's own tasks), 0.3, 1 and 3
points of right answers lost. With one of them, one tier is (--tier), and the table's others stay.

Each layer gets a number of experts of its own if that loses less, at an equal mean number, on prompts that
were not tuned on (--uniform does not try).

Simulation and allocation read the table only; measuring and verifying run the model. --simulate-only stops
before the model is loaded. If a run is interrupted, the same command continues it."""

_EXAMPLES = """
  sere tune MODEL
  sere tune MODEL --prompts prompts.txt
  sere tune MODEL --prompts prompts.txt --max-kl 0.01 --tier fast
  sere tune MODEL --questions questions.jsonl --max-loss 1.0
  sere tune MODEL --texts notes.txt --speedup 1.5 --tier mine --out tuned.sere
  sere tune MODEL --simulate-only
  sere tune bundled --picture tuning.png
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "Find the fewest experts for a loss that you accept, and store them in the table."
    parser = add_command(subparsers, "tune", summary, run, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help=f"a checkpoint folder, a hub name, or '{BUNDLED}'")
    add_table_argument(parser, f"the model's own; '{BUNDLED}' is calibrated if it has none")
    text = "table to write (default: the one read; for one on the hub, NAME.sere in the current folder)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    parser.add_argument("--record", type=Path, metavar="FILE", help="write all measurements as JSON")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw loss over experts (.png, .svg)")
    add_report_argument(parser)
    _add_goal(parser)
    _add_texts(parser)
    work = parser.add_argument_group("work")
    work.add_argument(
        "--batch-size", type=whole(2), nargs="+", metavar="B",
        help="rows per step that are measured (default: 4 8 16 32 64 128)",
    )  # fmt: skip
    work.add_argument(
        "--max-new-tokens",
        type=whole(2),
        default=64,
        metavar="N",
        help="tokens per continuation (default: 64)",
    )
    work.add_argument(
        "--max-prompts", type=whole(1), metavar="N", help="use at most so many prompts (default: 256)"
    )
    work.add_argument("--seed", type=whole(), default=0, metavar="N", help="seed of all choices (default: 0)")
    work.add_argument(
        "--work-dir", type=Path, metavar="DIR",
        help="keep finished measurements here, for further tiers (default: TABLE.tuning, deleted at the end)",
    )  # fmt: skip
    work.add_argument(
        "--uniform",
        action="store_true",
        help="give all layers the same number of experts; saves measurements",
    )
    work.add_argument(
        "--layer-runs", type=whole(1), metavar="N",
        help="at most so many measurements of what single layers cost (default: 48)",
    )  # fmt: skip
    work.add_argument("--simulate-only", action="store_true", help="print what the table alone says")
    add_model_arguments(parser)
    add_json_flag(parser)


def _add_goal(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what you want")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--max-kl", type=at_least(0, "nats per token", above=True), metavar="KL",
        help="divergence that you accept, nats per token",
    )  # fmt: skip
    one.add_argument(
        "--max-loss", type=at_least(0, "percentage points", above=True), metavar="POINTS",
        help="right answers that you accept to lose, percentage points",
    )  # fmt: skip
    one.add_argument(
        "--speedup", type=at_least(1, "times", above=True), metavar="TIMES",
        help="how many times faster a step is to be, by its predicted time on this machine, or by --by bytes",
    )  # fmt: skip
    group.add_argument(
        "--by", choices=["time", "bytes"], default="time",
        help="what a step costs: its predicted time here, or bytes of weights (default: time)",
    )  # fmt: skip
    group.add_argument("--tier", metavar="NAME", help="tier to store it as (default: balanced)")


def _add_texts(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("what the model continues")
    one = files.add_mutually_exclusive_group()
    one.add_argument("--prompts", metavar="FILE", help="prompts")
    one.add_argument("--texts", metavar="FILE", help="texts, of which pieces are continued")
    one.add_argument("--questions", metavar="FILE", help="questions with their answers")
    files.add_argument("--field", metavar="NAME", help="field with a row's text or conversation")
    files.add_argument(
        "--no-chat-template", action="store_true", help="do not apply the tokenizer's chat template"
    )


def run(args: argparse.Namespace) -> int:
    """Tune, write the table, print what was found."""
    own_tasks = knows_tasks(args.model)
    _check(args, own_tasks)
    source = table_path(args) if own_tasks else needed_table(args)
    if args.simulate_only:
        return _simulate(args, source)
    out = args.out or table_to_write(source, args.model)
    _check_files(args, out)
    check_report(args)
    plan = _plan(args, own_tasks)
    work = args.work_dir or out.with_name(f"{out.name}.tuning")
    tuned = _tune(args, source, plan, work)
    tuned.table.save(out)
    if args.record is not None:
        write_json(args.record, tuned.record)
    if args.picture is not None:
        from sere.tune.picture import draw_frontier

        draw_frontier(tuned.record, args.picture)
    save_report(args, [tuned.record], out)
    emit(args, tuned.record, render)
    for path in filter(None, (out, args.record, args.picture)):
        say(f"wrote {path}")
    say_how_to_serve(args.model, out)
    return 0


def _check(args: argparse.Namespace, own_tasks: bool) -> None:
    """Refuse what contradicts itself, before anything is loaded.

    Raises:
        ConfigError: Arguments exclude each other, or need questions.
    """
    goal = any(value is not None for value in (args.max_kl, args.max_loss, args.speedup))
    if args.tier is not None and not goal:
        raise ConfigError("--tier: names the tier of --max-kl, --max-loss or --speedup; give one of them")
    if args.uniform and args.layer_runs is not None:
        raise ConfigError(
            "--layer-runs: measures what single layers cost, which --uniform leaves out; give one of them"
        )
    if args.max_loss is not None and not args.questions and (args.prompts or args.texts or not own_tasks):
        raise ConfigError(
            "--max-loss: is counted in right answers, which prompts and texts do not have; give "
            "--questions FILE, or --max-kl"
        )


def _check_files(args: argparse.Namespace, out: Path) -> None:
    from sere.table.storage import holds_table

    read = (args.prompts, args.texts, args.questions)
    keep_other_files(out, holds_table, "a similarity table", read=read)
    check_writable(out)
    if args.record is not None:
        keep_other_files(args.record, holds_json, "a record in JSON", read=read)
        check_writable(args.record)
    if args.picture is not None:
        check_writable(args.picture)


def _plan(args: argparse.Namespace, own_tasks: bool) -> TunePlan:
    """Return what to tune, with a file's prompts, questions of sere's own tasks, or what the model writes."""
    from sere.eval.user_questions import read_prompts, read_questions
    from sere.table.tiers import DEFAULT_TIER
    from sere.tune.plan import BATCH_SIZES, LAYER_RUNS, MOST_PROMPTS, Goal, Kind, TunePlan, default_goals
    from sere.tune.prompts import own_questions, pieces_of

    field: dict[str, str] = {} if args.field is None else {"field": args.field}
    texts: dict[str, Any] = {"chat_template": not args.no_chat_template}
    count = args.max_prompts or MOST_PROMPTS
    if args.prompts is not None:
        texts["prompts"], texts["source"] = read_prompts(args.prompts, **field)
    elif args.texts is not None:
        texts = {
            "prompts": pieces_of(args.texts, count=count, seed=args.seed, **field),
            "chat_template": False,
        }
    elif args.questions is None and not own_tasks:
        texts["own_prompts"] = True
    else:
        if args.questions is not None:
            texts["questions"], texts["source"] = read_questions(args.questions, **field)
        else:
            texts = {"questions": own_questions(count=count, seed=args.seed)}
        texts["prompts"] = [question.prompt for question in texts["questions"]]
    wanted: list[tuple[Kind, float | None]] = [
        ("kl", args.max_kl),
        ("loss", args.max_loss),
        ("speedup", args.speedup),
    ]
    one = next((Goal(kind, value) for kind, value in wanted if value is not None), None)
    return TunePlan(
        goals=default_goals(texts.get("questions")) if one is None else {args.tier or DEFAULT_TIER: one},
        batch_sizes=args.batch_size or BATCH_SIZES,
        max_new_tokens=args.max_new_tokens,
        max_prompts=count,
        seed=args.seed,
        uniform=args.uniform,
        layer_runs=args.layer_runs or LAYER_RUNS,
        by=args.by,
        **texts,
    )


def _tune(args: argparse.Namespace, source: Path | None, plan: TunePlan, work: Path) -> Any:
    from sere.cli.progress_bar import bar
    from sere.table import SimilarityTable
    from sere.tune.run import tune_plan

    table = None if source is None else SimilarityTable.load(source)  # first, because it is quick to fail
    if plan.own_prompts:
        say(f"no --prompts: {args.model} writes its own, sampled at temperature 1")
    model, tokenizer = load(args)
    if table is None:
        from sere.eval.calibration import calibrate_on_tasks

        say(f"no --table: calibrating {args.model} on training texts of sere's own tasks")
        table = calibrate_on_tasks(model, tokenizer, seed=args.seed)
    return tune_plan(
        model, tokenizer, table, plan, work_dir=work, keep_work=args.work_dir is not None, progress=bar
    )


def _simulate(args: argparse.Namespace, source: Path | None) -> int:
    """Print what the table says without the model."""
    from sere.table import SimilarityTable
    from sere.table.neighbors import has_factors
    from sere.tune.allocate import BETWEEN
    from sere.tune.gains import CANDIDATES
    from sere.tune.plan import BATCH_SIZES
    from sere.tune.record import shown
    from sere.tune.simulate import simulate

    if source is None:
        raise ConfigError(f"--table: {args.model} has no table; make one with: sere calibrate {args.model}")
    table: SimilarityTable = SimilarityTable.load(source)
    rows = sorted({*(args.batch_size or BATCH_SIZES), *BETWEEN})
    gains = (0.0, *(CANDIDATES if has_factors(table.layers) else ()))
    found = {
        f"{gain:g}": shown({B: simulate(table, B, min_gain=gain, seed=args.seed) for B in rows})
        for gain in gains
    }
    identity = table.identity
    result = {"model": identity.name, "num_experts": identity.num_experts, "top_k": identity.top_k}
    emit(args, result | {"simulated": found["0"], "by_min_gain": found}, render_simulated)
    return 0
