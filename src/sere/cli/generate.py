"""``sere generate``: complete prompts, with or without re-routing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sere.cli.loading import add_model_arguments, add_table_argument, load, table_path
from sere.cli.numbers import whole
from sere.cli.output import add_json_flag, emit, say
from sere.cli.parser import add_command
from sere.cli.settings import DEFAULT
from sere.errors import DataError

if TYPE_CHECKING:
    from sere.policies.spec import PolicySpec
    from sere.table import SimilarityTable
    from sere.texts import Row

_DETAILS = """All prompts are decoded as one batch, greedily. With --table or --setting the decode steps
are re-routed; without, the model is unmodified. Prompts with their completions go to stdout."""

_EXAMPLES = """
  sere generate bundled --prompt $'add 4821+937\\n' --prompt $'sort 29 23 26 46 59\\n'
  sere generate MODEL --setting sere --prompt 'The mill stood' > completion.txt
  sere generate MODEL --prompt-file prompts.txt --max-new-tokens 100 --json
"""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "Complete prompts, with or without re-routing."
    parser = add_command(subparsers, "generate", summary, run, details=_DETAILS, examples=_EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="a checkpoint folder, a hub name, or 'bundled'")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a prompt; repeatable")
    parser.add_argument(
        "--prompt-file", metavar="FILE",
        help="a .txt file with one prompt per line, or rows (.jsonl, .json, .parquet) with a text or "
        "messages in --field",
    )  # fmt: skip
    parser.add_argument(
        "--field", default="prompt", metavar="NAME", help="field of a row with the prompt (default: prompt)"
    )
    parser.add_argument(
        "--max-new-tokens", type=whole(1), default=64, metavar="N", help="tokens per completion (default: 64)"
    )
    group = parser.add_argument_group("re-routing")
    add_table_argument(group, "the model's own")
    group.add_argument(
        "--setting",
        metavar="SETTING",
        help=f"a routing rule; see sere list policies (default with --table: {DEFAULT})",
    )
    add_model_arguments(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Generate and print the completions."""
    from sere.integrations.transformers.apply import finished_token
    from sere.summaries import summarize_handle

    rows = _prompts(args)
    setting, similarities = _setting(args)
    model, tokenizer = load(args)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Rows that have finished are told by the token they are fed: generate and re-routing must mean the same.
    pad = finished_token(model, tokenizer.pad_token_id)
    prompts = [row.text(tokenizer, generation_prompt=True) for row in rows]
    with _applied(model, setting, similarities, pad) as handle:
        texts = _complete(model, tokenizer, prompts, args.max_new_tokens)
        happened = {} if handle is None else summarize_handle(handle)
    value: dict[str, Any] = {
        "setting": None if setting is None else setting.label,
        "completions": [{"prompt": p, "text": text} for p, text in zip(prompts, texts, strict=True)],
        "experts": happened.get("experts"),
        "nothing_changed": happened.get("nothing_changed"),
    }
    emit(args, value, render)
    if not args.json and (note := _experts(value["experts"])) is not None:
        say(note)
    return 0


def _prompts(args: argparse.Namespace) -> list[Row]:
    """Return the prompts; a conversation becomes a text once there is a tokenizer."""
    from sere.texts import Row, naming, read_rows

    if not all(args.prompt):
        raise DataError("--prompt: expected a non-empty prompt, got an empty one")
    rows = [Row("--prompt", text) for text in args.prompt]
    if args.prompt_file is not None:
        with naming("--prompt-file"):
            found = list(read_rows(Path(args.prompt_file), field=args.field, lines=True))
        if empty := [row.origin for row in found if row.content is None]:
            raise DataError(f"--prompt-file: {empty[0]} holds no prompt (null or blank)")
        if not found:
            raise DataError(f"--prompt-file: {args.prompt_file} holds no prompt; expected one per line")
        rows += found
    if not rows:
        raise DataError("generate: expected at least one prompt; give one with --prompt or --prompt-file")
    return rows


def _setting(args: argparse.Namespace) -> tuple[PolicySpec | None, SimilarityTable | None]:
    """Return the way to route, None to leave the model as it is, and the table."""
    from sere.engines.transformers import check_settings
    from sere.policies.spec import parse_spec
    from sere.table import SimilarityTable

    if args.setting is None and args.table is None:
        return None, None
    setting = parse_spec(DEFAULT if args.setting is None else args.setting)
    path = table_path(args) if setting.needs_table or args.table is not None else None
    similarities = None if path is None else SimilarityTable.load(path)
    check_settings([setting], similarities)
    return setting, similarities


def _applied(
    model: Any, setting: PolicySpec | None, table: SimilarityTable | None, pad_token_id: int | None
) -> AbstractContextManager[Any]:
    from sere.engines.transformers import apply_setting

    if setting is None:
        return nullcontext()
    return apply_setting(model, setting, table, pad_token_id=pad_token_id)


def _complete(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Return the greedy completions of one left-padded batch."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from sere.calibrate.vocabulary import check_prompts
    from sere.texts import encode

    rows = [torch.tensor(encode(prompt, tokenizer), dtype=torch.long, device="cpu") for prompt in prompts]
    if empty := [prompt for prompt, row in zip(prompts, rows, strict=True) if not row.numel()]:
        raise DataError(f"generate: the prompt {empty[0]!r} has no tokens; expected at least one")
    check_prompts([row.tolist() for row in rows], max_new_tokens, tokenizer, model)
    pad = tokenizer.pad_token_id
    ids = pad_sequence(rows, batch_first=True, padding_value=pad or 0, padding_side="left")
    masks = [torch.ones_like(row) for row in rows]
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=pad_sequence(masks, batch_first=True, padding_side="left").to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
    )
    new = output[:, ids.shape[1] :]
    return [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def render(value: Mapping[str, Any]) -> str:
    """Return prompts and completions."""
    return "\n\n".join(f"{one['prompt']}{one['text']}" for one in value["completions"])


def _experts(experts: Mapping[str, Any] | None) -> str | None:
    """Return what re-routing did; None where no decode step was counted."""
    if experts is None or experts["distinct_before"] is None:
        return None
    return (
        f"distinct experts per layer and step: {experts['distinct_before']:.1f} > "
        f"{experts['distinct_after']:.1f}; {100 * experts['slots_rerouted']:.0f} % of slots re-routed"
    )
