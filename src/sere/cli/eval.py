"""``sere eval``: what re-routing costs, in right answers or against the unmodified model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sere.bundled import BUNDLED, knows_tasks
from sere.cli.engine_options import add_engine_option, options_for
from sere.cli.eval_engines import on_transformers, on_vllm
from sere.cli.eval_tables import render
from sere.cli.loading import add_model_arguments, add_table_argument, needed_table, table_file, table_path
from sere.cli.numbers import whole
from sere.cli.output import add_json_flag, emit, say
from sere.cli.parser import add_command, add_setting_argument
from sere.cli.report_file import add_report_argument, check_report, save_report
from sere.cli.settings import CONTROLS, DEFAULT
from sere.errors import ConfigError
from sere.files import check_writable, holds_json, keep_other_files, write_json

_DEFAULT_SETTINGS = (DEFAULT, *CONTROLS)

# Most tokens of an answer, and of a continuation.
_ANSWER_TOKENS, _CONTINUATION_TOKENS = 256, 64
_PER_TASK, _PASSAGES = 100, 100

_DETAILS = """Decodes in steps of B rows under each setting and compares with the unmodified model.
Texts come from:

--prompts FILE: the unmodified model continues each prompt, and each setting
  is scored on these tokens: how often it would choose the same token, KL
  divergence in nats per token, and perplexity, with 95 % intervals over
  prompts. Works with any model and needs no answers. FILE is a .txt file with
  one prompt per line, or rows (.jsonl, .json, .parquet) with "prompt",
  "messages" or "conversations"; an answer at the end of a conversation is
  left out. Give at least 50 prompts: with fewer, the intervals are too narrow
  if a few prompts differ much from the others.
--questions FILE: counts right answers and compares them with those of the
  unmodified model on the same questions. Rows as above with "answer", and
  "pattern" if the answer is only part of the output: a regular expression
  whose last match counts (its first group, if it has one). Without a pattern
  the complete output must be the answer.
neither: sere's own tasks and English passages, which the bundled model was
  trained on. Other models need its tokenizer.

If the tokenizer has a chat template, each text is given to the model as a user's message.

A setting is a routing rule and its options. sere list policies shows them; among them are:
  off                       the unmodified model, always measured
  sere                      all defaults
  sere:active_experts=24    fill up to 24 experts per layer and step
  sere:paper,select_top_k=2 the published method
  random                    the control: the experts of sere, and a target by chance
  drop                      the control: the experts of sere, and no target at all
  topk:select_top_k=1       each token's heaviest expert alone

With --engine vllm, B is the number of concurrent requests, --prompts is refused, and settings that
differ in more than select_top_k and threshold get separate engines, one after the other. If
a run with --out is interrupted, the same command continues after the last finished case."""

_EXAMPLES = """
  sere eval MODEL --prompts prompts.txt
  sere eval MODEL --setting topk:select_top_k=4 --batch-size 16 --questions questions.jsonl --out eval.json
  sere eval bundled --batch-size 1 16 --setting sere:active_experts=24 --setting sere:active_experts=32
  sere eval bundled --batch-size 16 --tasks addition sorting --per-task 50 --no-text --json
  sere eval bundled --engine vllm --batch-size 8 64 --setting sere
  sere eval MODEL --questions q.jsonl --engine vllm --engine-option tensor_parallel_size=2 --setting sere
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "Measure what re-routing costs at several settings and batch sizes."
    parser = add_command(subparsers, "eval", summary, run, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help=f"a checkpoint folder, a hub name, or '{BUNDLED}'")
    add_table_argument(
        parser,
        "the model's own; a model with sere's own tasks is calibrated on their training texts if it has none",
    )
    parser.add_argument(
        "--metric", metavar="NAME",
        help="metric of the table that is calibrated; see sere list metrics (default: projection)",
    )  # fmt: skip
    add_setting_argument(parser, _DEFAULT_SETTINGS, done="measured")
    parser.add_argument(
        "--batch-size",
        type=whole(1),
        nargs="+",
        default=[1, 16],
        metavar="B",
        help="rows per step (default: 1 16)",
    )
    parser.add_argument(
        "--max-new-tokens", type=whole(1), metavar="N",
        help=f"tokens per answer (default: {_ANSWER_TOKENS}) or per continuation (default: "
        f"{_CONTINUATION_TOKENS})",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole(), default=0, help="seed of tasks and of random rules (default: 0)"
    )
    parser.add_argument(
        "--engine", choices=("transformers", "vllm"), default="transformers",
        help="engine that decodes; vllm only counts right answers (default: transformers)",
    )  # fmt: skip
    add_engine_option(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the complete result as JSON")
    add_report_argument(parser)
    _add_texts(parser)
    add_model_arguments(parser)
    add_json_flag(parser)


def _add_texts(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("what to decode")
    one = files.add_mutually_exclusive_group()
    one.add_argument("--prompts", metavar="FILE", help="prompts for the model to continue")
    one.add_argument("--questions", metavar="FILE", help="questions with their answers")
    files.add_argument(
        "--field", default="prompt", metavar="NAME",
        help="field with a row's text or conversation (default: prompt, else messages or conversations)",
    )  # fmt: skip
    files.add_argument(
        "--no-chat-template", action="store_true", help="do not apply the tokenizer's chat template"
    )
    tasks = parser.add_argument_group("sere's own tasks, for models with the bundled model's tokenizer")
    tasks.add_argument(
        "--per-task", type=whole(1), metavar="N", help=f"questions per task (default: {_PER_TASK})"
    )
    tasks.add_argument("--tasks", nargs="+", metavar="TASK", help="names of tasks (default: all)")
    tasks.add_argument(
        "--passages", type=whole(0), metavar="N", help=f"English passages (default: {_PASSAGES})"
    )
    tasks.add_argument(
        "--no-text", dest="passages", action="store_const", const=0, help="skip the English passages"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the record, print the tables."""
    from sere.policies.spec import parse_specs

    settings = parse_specs(args.setting or _DEFAULT_SETTINGS)
    options = options_for(args, settings, command="sere eval")
    own_tasks = knows_tasks(args.model)
    _check_texts(args, own_tasks)
    args.table = _find_table(args, own_tasks, needed=any(setting.needs_table for setting in settings))
    if args.out is not None:
        read = (args.table, args.prompts, args.questions)
        keep_other_files(args.out, holds_json, "a record in JSON", read=read)
        check_writable(args.out)
    check_report(args)
    plan = _plan(args, settings)
    partial = None if args.out is None else args.out.with_name(f".{args.out.name}.partial")
    if args.engine == "vllm":
        record = on_vllm(args, plan, partial, options)
    else:
        record = on_transformers(args, plan, partial)
    if args.out is not None:
        write_json(args.out, record)
        say(f"wrote {args.out}")
    save_report(args, [record], args.table)
    emit(args, record, render)
    return 0


def _check_texts(args: argparse.Namespace, own_tasks: bool) -> None:
    """Refuse what cannot be asked of a model, before anything is loaded.

    Raises:
        ConfigError: Nothing that the model could be asked is given, or arguments exclude each other.
    """
    of_tasks = {"--per-task": args.per_task, "--tasks": args.tasks, "--passages or --no-text": args.passages}
    given = [flag for flag, value in of_tasks.items() if value is not None]
    if args.prompts is None and args.questions is None:
        if not own_tasks:
            raise ConfigError(
                f"{args.model}: sere's own tasks need the bundled model's tokenizer, which it does not have. "
                "Give --prompts FILE to compare its outputs with re-routing off and on, or "
                "--questions FILE to count right answers"
            )
        if args.no_chat_template:
            raise ConfigError("--no-chat-template: only with --prompts or --questions")
        return
    if given:
        raise ConfigError(
            f"{given[0]}: only for sere's own tasks; leave it out, or leave out "
            f"{'--questions' if args.prompts is None else '--prompts'}"
        )
    if args.questions is not None and args.questions.isdigit() and not Path(args.questions).exists():
        raise ConfigError(
            f"--questions: expected a file, got {args.questions}; for the number of questions per task of "
            f"'{BUNDLED}', use --per-task {args.questions}"
        )
    if args.engine == "vllm" and args.prompts is not None:
        raise ConfigError(
            "--prompts: vLLM does not return the logits of given tokens; use --engine transformers, or "
            "--questions"
        )


def _find_table(args: argparse.Namespace, own_tasks: bool, *, needed: bool) -> Path | None:
    """Return the path of the table; None if none is needed or one is to be made with the own tasks.

    Raises:
        ConfigError: The table is missing, or a metric is given that would not be used.
    """
    if args.metric is not None:
        if args.table is not None or not own_tasks:
            raise ConfigError(
                f"--metric: only for '{BUNDLED}' or a model with its tokenizer, without --table; "
                "a table that is given has its own"
            )
        from sere.similarity.metrics import get_metric

        get_metric(args.metric)
        return None
    # An engine of vLLM starts with a table, whatever is measured in it.
    if needed or args.engine == "vllm":
        return table_path(args) if own_tasks else needed_table(args)
    return None if args.table is None else table_file(args.table)


def _plan(args: argparse.Namespace, settings: list[Any]) -> Any:
    """Return what to evaluate: prompts, a file's questions, or sere's own tasks."""
    from sere.eval.plan import PromptPlan, QuestionPlan
    from sere.eval.questions import held_out, held_out_english
    from sere.eval.user_questions import read_prompts, read_questions

    common: dict[str, Any] = {
        "settings": settings, "batch_sizes": list(dict.fromkeys(args.batch_size)), "seed": args.seed,
    }  # fmt: skip
    common["max_new_tokens"] = args.max_new_tokens
    if args.max_new_tokens is None:
        common["max_new_tokens"] = _ANSWER_TOKENS if args.prompts is None else _CONTINUATION_TOKENS
    files: dict[str, Any] = {"chat_template": not args.no_chat_template}
    if args.prompts is not None:
        prompts, source = read_prompts(args.prompts, field=args.field)
        return PromptPlan(prompts=prompts, source=source, **files, **common)
    if args.questions is not None:
        questions, source = read_questions(args.questions, field=args.field)
        return QuestionPlan(questions=questions, source=source, **files, **common)
    passages = _PASSAGES if args.passages is None else args.passages
    per_task = _PER_TASK if args.per_task is None else args.per_task
    return QuestionPlan(
        questions=held_out(per_task, tasks=args.tasks, seed=args.seed),
        # vLLM gives no logits of decoded text.
        passages=held_out_english(passages, seed=args.seed)
        if passages and args.engine == "transformers"
        else (),
        **common,
    )
