"""``tune``: a model and prompts in, a table with tiers out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sere.checkpoints import find_checkpoint, load_model, load_tokenizer
from sere.defaults import required_table
from sere.errors import ConfigError, InputError, did_you_mean
from sere.eval.user_questions import read_prompts, read_questions
from sere.progress import NO_PROGRESS, Progress
from sere.table import SimilarityTable, locate_table
from sere.texts import Row
from sere.tune.plan import BATCH_SIZES, LAYER_RUNS, MOST_PROMPTS, Goal, Kind, Measure, TunePlan, default_goals
from sere.tune.run import Tuned, tune_plan

GOALS: Mapping[str, Kind] = {"max_kl": "kl", "max_loss": "loss", "speedup": "speedup"}
"""What may be wanted of a tier, by its name in `tune` and on the command line."""


def tune(
    model: nn.Module | str | os.PathLike[str],
    tokenizer: Any = None,
    prompts: Sequence[str | Row] | str | os.PathLike[str] | None = None,
    *,
    questions: str | os.PathLike[str] | None = None,
    table: SimilarityTable | str | os.PathLike[str] | None = None,
    tiers: Mapping[str, Mapping[str, float]] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    max_new_tokens: int = 64,
    max_prompts: int = MOST_PROMPTS,
    seed: int = 0,
    chat_template: bool = True,
    uniform: bool = False,
    layer_runs: int = LAYER_RUNS,
    by: Measure = "time",
    work_dir: str | os.PathLike[str] | None = None,
    progress: Progress = NO_PROGRESS,
) -> Tuned:
    """Find the fewest experts for a loss that you accept.

    Args:
        model: A causal language model of Transformers in evaluation mode, unmodified; or a checkpoint: its
            path or its hub name, which is then loaded completely.
        tokenizer: Its tokenizer; None loads the checkpoint's.
        prompts: What the model continues: texts, or a file as for ``sere eval --prompts``. At least 100 are
            good; half of them verify. None lets the model write ``max_prompts`` of them; see
            `sere.calibrate.own_texts.write_prompts`.
        questions: A file of questions with answers, as for ``sere eval --questions``, instead of prompts.
        table: Its similarity table, or the path of one; None for the one beside the model's weights.
        tiers: What is wanted, by the tier's name: ``{"balanced": {"max_kl": 0.002}}``. A tier has one of
            ``max_kl`` (nats per token), ``max_loss`` (percentage points of right answers, needs questions)
            and ``speedup`` (how many times fewer bytes of weights a step reads). None for three
            tiers by ``max_kl`` or, with questions, by ``max_loss``: see `sere.tune.plan`.
        batch_sizes: Rows of the steps that are measured, from 2 on.
        max_new_tokens: Most tokens of a continuation.
        max_prompts: At most so many prompts are used.
        seed: Seed of all choices.
        chat_template: Give plain texts as a user's message, if the tokenizer has a chat template.
        uniform: Give all layers the same number of experts. Otherwise each layer gets a number of its own,
            for the tiers that then lose less, at an equal mean number, on prompts that were not tuned on.
        layer_runs: At most so many measurements of what single layers cost.
        by: What a step costs: ``"time"``, predicted for this machine from two ceilings that are measured at
            the start, or ``"bytes"`` of weights, the same on every machine. A speedup counts in it. By time,
            tiers get a least gain where that is faster.
        work_dir: A folder that keeps finished measurements: the same call continues after an interruption.
            It is deleted at the end.
        progress: Shows how far the work is.

    Returns:
        The table with its new tiers, to be saved, and a record of all that was measured.

    Raises:
        ConfigError: A goal is unknown or out of range.
        InputError: The model or a file cannot be used, or ``work_dir`` holds another run.
        DataError: There are too few prompts, or they cannot be read.
        TableError: The table cannot be read, or does not hold the router's choices.
        TableMismatch: It belongs to another model.

    Source: docs/tuning.md.
    """
    goals = default_goals(questions)
    if tiers is not None:
        goals = {name: _goal(name, wanted) for name, wanted in tiers.items()}
    asked: dict[str, Any] = {}
    if questions is not None:
        found, asked["source"] = read_questions(questions)
        asked |= {"questions": found, "prompts": [question.prompt for question in found]}
    elif isinstance(prompts, str | os.PathLike):
        asked["prompts"], asked["source"] = read_prompts(prompts)
    elif prompts is not None:
        asked["prompts"] = list(prompts)
    else:
        asked["own_prompts"] = True
    plan = TunePlan(
        goals=goals, batch_sizes=batch_sizes, max_new_tokens=max_new_tokens, max_prompts=max_prompts,
        seed=seed, chat_template=chat_template, uniform=uniform, layer_runs=layer_runs, by=by, **asked,
    )  # fmt: skip
    if not isinstance(model, nn.Module):
        path = find_checkpoint(os.fspath(model))
        tokenizer = load_tokenizer(path) if tokenizer is None else tokenizer
        model = load_model(path)
    if tokenizer is None:
        raise InputError(
            "tokenizer: expected the model's tokenizer, got None; load it with AutoTokenizer.from_pretrained"
        )
    return tune_plan(model, tokenizer, _table(model, table), plan, work_dir=work_dir, progress=progress)


def _goal(name: str, wanted: Mapping[str, float]) -> Goal:
    if not isinstance(wanted, Mapping) or len(wanted) != 1:
        raise ConfigError(f'tier {name}: expected one goal, such as {{"max_kl": 0.002}}, got {wanted!r}')
    ((kind, value),) = wanted.items()
    if kind not in GOALS:
        raise ConfigError(f"tier {name}: unknown goal {kind!r}{did_you_mean(kind, GOALS)}")
    return Goal(GOALS[kind], value)


def _table(model: nn.Module, table: SimilarityTable | str | os.PathLike[str] | None) -> SimilarityTable:
    if isinstance(table, SimilarityTable):
        return table
    if table is None:
        table = required_table("tuning", getattr(model, "name_or_path", None))
    return SimilarityTable.load(locate_table(table))
