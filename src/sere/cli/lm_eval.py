"""``sere lm-eval``: tasks of lm-eval under several settings, compared with the unmodified model."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sere.bundled import BUNDLED, knows_tasks
from sere.cli.engine_options import FIXED, FIXED_BY_SCORING, add_engine_option, options_for
from sere.cli.lm_eval_engines import on_transformers, on_vllm
from sere.cli.lm_eval_tables import render
from sere.cli.loading import add_model_arguments, add_table_argument, needed_table, table_file, table_path
from sere.cli.numbers import whole
from sere.cli.output import add_json_flag, emit, say
from sere.cli.parser import add_command, add_setting_argument
from sere.cli.report_file import add_report_argument, check_report, save_report
from sere.cli.settings import CONTROLS, DEFAULT
from sere.errors import ConfigError
from sere.files import check_writable, holds_json, keep_other_files, write_json

_DEFAULT_SETTINGS = (DEFAULT, *CONTROLS)
_PER_TASK = 100

_DETAILS = """Runs tasks of lm-eval (LM Evaluation Harness, 0.4.13 or newer) under each setting at each
batch size, the unmodified model first, with the same seeds, and compares question by question.

Tasks that generate text are decoded, so re-routing acts on them. Log-likelihood
tasks (multiple choice, perplexity) are scored in prefill, where nothing is
re-routed: without --phases decode they are refused, because every setting would
have the result of the unmodified model. With --phases decode, the given tokens
are fed in decode steps of B rows and scored there.

TASK is a name, group, tag or pattern of lm-eval, or of a YAML file in
--include-path. These are sere's own tasks, written to files for the run, for
models with the bundled model's tokenizer:

  sere_addition, ...         generate an answer; sere_generate: all ten
  sere_addition_choice, ...  choose among four; sere_choice: all ten

With --engine vllm, B is the most requests that decode at once, and there is one engine per batch size."""

_EXAMPLES = """
  sere lm-eval bundled --tasks sere_addition sere_sorting --batch-size 8 16 --setting sere
  sere lm-eval bundled --tasks sere_choice --phases decode --limit 20 --batch-size 16
  sere lm-eval MODEL --tasks arc_easy --phases decode --engine vllm --limit 200 --setting sere
  sere lm-eval MODEL --tasks gsm8k --engine vllm --batch-size 16 --limit 200 --out gsm8k.json
  sere lm-eval MODEL --tasks gsm8k --engine vllm --engine-option tensor_parallel_size=8 --setting sere
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "Measure what re-routing costs on tasks of lm-eval."
    parser = add_command(subparsers, "lm-eval", summary, run, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help=f"a checkpoint folder, a hub name, or '{BUNDLED}'")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="what to evaluate")
    add_table_argument(
        parser, "the model's own; the bundled model is calibrated on its tasks' training texts if it has none"
    )
    add_setting_argument(parser, _DEFAULT_SETTINGS, done="measured")
    parser.add_argument(
        "--batch-size", type=whole(1), nargs="+", default=[16], metavar="B",
        help="rows of a decode step (default: 16)",
    )  # fmt: skip
    parser.add_argument(
        "--phases", choices=("prefill", "decode"), default="prefill",
        help="where log-likelihoods are taken (default: prefill)",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("transformers", "vllm"), default="transformers",
        help="engine that decodes (default: transformers)",
    )  # fmt: skip
    add_engine_option(parser)
    parser.add_argument("--num-fewshot", type=whole(), metavar="N", help="examples (default: the task's own)")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="questions per task (default: all)")
    parser.add_argument(
        "--per-task", type=whole(1), default=_PER_TASK, metavar="N",
        help=f"questions of each of sere's own tasks that are written (default: {_PER_TASK})",
    )  # fmt: skip
    parser.add_argument("--include-path", metavar="FOLDER", help="a folder with further tasks")
    parser.add_argument(
        "--apply-chat-template", action="store_true", help="apply the tokenizer's chat template"
    )
    parser.add_argument("--seed", type=whole(), default=0, help="seed of examples and rules (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the complete result as JSON")
    add_report_argument(parser)
    add_model_arguments(parser)
    add_json_flag(parser)
    parser.set_defaults(metric=None)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the record, print the table."""
    from sere.eval.harness.plan import HarnessPlan, check_version, find_tasks
    from sere.eval.harness.run import why_nothing
    from sere.policies.spec import parse_specs

    settings = parse_specs(args.setting or _DEFAULT_SETTINGS)
    fixed = FIXED_BY_SCORING if args.phases == "decode" else FIXED
    options = options_for(args, settings, command="sere lm-eval", fixed=fixed)
    check_version()
    args.table = _find_table(args, any(setting.needs_table for setting in settings))
    if args.out is not None:
        keep_other_files(args.out, holds_json, "a record in JSON", read=(args.table,))
        check_writable(args.out)
    check_report(args)
    with ExitStack() as stack:
        folders = [] if args.include_path is None else [args.include_path]
        plan = HarnessPlan(
            tasks=list(dict.fromkeys(args.tasks)), settings=settings, engine=args.engine, phases=args.phases,
            batch_sizes=list(dict.fromkeys(args.batch_size)), folders=[*folders, *_own(args, stack)],
            num_fewshot=args.num_fewshot, limit=args.limit, seed=args.seed,
            chat_template=args.apply_chat_template,
        )  # fmt: skip
        found = find_tasks(plan)
        partial = None if args.out is None else args.out.with_name(f".{args.out.name}.partial")
        if args.engine == "vllm":
            record = on_vllm(args, plan, found, partial, options)
        else:
            record = on_transformers(args, plan, found, partial)
    if args.out is not None:
        write_json(args.out, record)
        say(f"wrote {args.out}")
    save_report(args, [record], args.table)
    emit(args, record, render)
    if (why := why_nothing(record)) is not None:
        say(f"sere: warning: in no decode step of this run was anything re-routed: {why}")
    return 0


def _find_table(args: argparse.Namespace, needed: bool) -> Path | None:
    """Return the path of the table; None if none is needed, or one is made on the texts of sere's own tasks.

    Raises:
        ConfigError: The table is missing.
    """
    # An engine of vLLM starts with a table, whatever is measured in it.
    if args.engine == "vllm" or (needed and not knows_tasks(args.model)):
        return needed_table(args)
    if needed:
        return table_path(args)
    return None if args.table is None else table_file(args.table)


def _own(args: argparse.Namespace, stack: ExitStack) -> list[str]:
    """Write sere's own tasks to a folder that is gone afterwards, if any is asked for.

    Raises:
        ConfigError: The model does not have the bundled model's tokenizer.
    """
    from tempfile import TemporaryDirectory

    from sere.eval.harness.tasks import own_names, write_tasks

    # What the user has written to a folder is the user's, whatever the model's tokenizer.
    given = (
        [] if args.include_path is None else [path.stem for path in Path(args.include_path).glob("*.yaml")]
    )
    asked = [task for task in args.tasks if task in own_names() and task not in given]
    if not asked:
        return []
    if not knows_tasks(args.model):
        raise ConfigError(
            f"{args.model}: sere's own tasks ({asked[0]}) need the bundled model's tokenizer, which it does "
            "not have; choose other --tasks"
        )
    folder = stack.enter_context(TemporaryDirectory(prefix="sere-lm-eval-"))
    write_tasks(folder, per_task=args.per_task, seed=args.seed)
    return [folder]
