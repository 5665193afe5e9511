"""``sere demo``: calibrate, decode and compare on the bundled model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sere.bundled import BUNDLED
from sere.cli.loading import checkpoint_path, load
from sere.cli.numbers import whole
from sere.cli.output import add_json_flag, case_table, emit, say
from sere.cli.parser import add_command
from sere.cli.settings import CONTROLS, DEFAULT
from sere.cli.terminal import paragraph
from sere.defaults import SUFFIX

if TYPE_CHECKING:
    from sere.bench.demo import Round

SETTINGS = (DEFAULT, "sere:tier=fast", *CONTROLS)
# Batch sizes and how many questions each is asked, so that all of them take some minutes.
QUESTIONS = {1: 10, 8: 60, 16: 160, 32: 240}

_TABLE = f"demo{SUFFIX}"
_FILES = ("demo.png", "demo.json", _TABLE)

_DETAILS = """Calibrates the model that comes with sere, decodes held-out questions at several batch
sizes with re-routing off and on, and counts experts, time and right answers. Writes a picture, the
similarity table and the result as JSON. Takes a few minutes on two idle cores."""

_EXAMPLES = """
  sere demo
  sere demo --batch-size 32 --per-task 4
  sere demo --json > demo.json
"""

_COLUMNS = """experts: distinct experts per layer and decode step, all of which must be read from
memory. TPOT: median time per output token. speedup: TPOT of the baseline (off) divided by TPOT of the
setting; the two take turns. right: exactly right answers, with a 95 % interval. vs baseline: difference
in percentage points on the same questions, with a 95 % interval. One thread, float32."""

_NEXT = """For your own Mixture-of-Experts model of Transformers:

  sere calibrate MODEL
  sere eval MODEL --prompts FILE

  with sere.apply(model):
      model.generate(**batch)
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "Calibrate, decode and compare on the bundled model."
    parser = add_command(subparsers, "demo", summary, run, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out"),
        metavar="DIR",
        help="folder for picture, table and JSON (default: out)",
    )
    parser.add_argument(
        "--batch-size", type=whole(1), nargs="+", default=list(QUESTIONS), metavar="B",
        help=f"rows per step (default: {' '.join(map(str, QUESTIONS))})",
    )  # fmt: skip
    parser.add_argument(
        "--per-task", type=whole(1), metavar="N",
        help="questions per task, at least one per row (default: chosen by batch size, for a run of "
        "a few minutes)",
    )  # fmt: skip
    add_json_flag(parser)
    parser.set_defaults(
        model=BUNDLED, device="cpu", dtype="float32", experts_implementation="eager", trust_remote_code=False
    )


def run(args: argparse.Namespace) -> int:
    """Calibrate, decode, print, draw."""
    from sere.bench.picture import draw_demo
    from sere.files import check_writable, write_json

    checkpoint_path(args)
    for name in _FILES:
        check_writable(args.out / name)
    record = _measure(args)
    write_json(args.out / "demo.json", record)
    draw_demo(record, args.out / "demo.png")
    emit(args, record, render)
    for name in _FILES:
        say(f"wrote {args.out / name}")
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from sere.bench.demo import demonstrate
    from sere.cli.progress_bar import bar
    from sere.eval.calibration import calibrate_on_tasks
    from sere.eval.questions import held_out
    from sere.eval.tasks import TASK_NAMES
    from sere.policies.spec import parse_specs

    rounds = plan_rounds(args.batch_size, args.per_task, len(TASK_NAMES))
    most = max(one.questions for one in rounds)
    questions = held_out(-(-most // len(TASK_NAMES)))
    # Matrices this small gain nothing from a second thread, and in bfloat16 a CPU is twice as slow.
    torch.set_num_threads(1)
    model, tokenizer = load(args)
    say("calibrating: how well experts replace each other")
    similarities = calibrate_on_tasks(model, tokenizer)
    similarities.save(args.out / _TABLE)
    return demonstrate(
        model,
        tokenizer,
        similarities,
        settings=parse_specs(SETTINGS),
        rounds=rounds,
        questions=questions,
        progress=bar,
    )


def plan_rounds(batch_sizes: Sequence[int], per_task: int | None, tasks: int) -> list[Round]:
    """Return the batch sizes, each with its number of questions; ``per_task`` is None for the default."""
    from sere.bench.demo import Round

    most = max(QUESTIONS.values())
    # With fewer questions than rows the steps would be smaller than they are called.
    return [
        Round(B, max(B, QUESTIONS.get(B, most) if per_task is None else per_task * tasks))
        for B in dict.fromkeys(batch_sizes)
    ]


def render(record: Mapping[str, Any]) -> str:
    """Return the result as a table, what its columns mean, and what to do next."""
    headers = ["B", "experts", "TPOT ms", "speedup", "right", "95 %", "vs baseline", "95 %"]
    rows = [(case["setting"], _row(case)) for case in record["cases"]]
    return f"\n{case_table(rows, headers)}\n\n{paragraph(_COLUMNS)}\n\n{_NEXT}"


def _row(case: Mapping[str, Any]) -> list[Any]:
    share, difference = case["share"], case.get("difference")
    return [
        case["batch_size"],
        f"{case['distinct_after']:.1f}",
        f"{case['tpot_ms']['p50']:.1f}",
        f"{case['speedup']['p50']:.2f}",
        f"{case['right']} of {case['n']}",
        f"{100 * share['low']:.1f} to {100 * share['high']:.1f}",
        None if difference is None else f"{100 * difference['value']:+.1f}",
        None if difference is None else f"{100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}",
    ]
