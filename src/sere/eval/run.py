"""Evaluate a list of settings at a list of batch sizes in one run, all against the unmodified model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from sere.calibrate.vocabulary import check_prompts
from sere.engines.transformers import apply_setting, check_settings
from sere.errors import InputError
from sere.eval.cases import (
    NO_PROGRESS,
    Progress,
    case_name,
    check_cases,
    finished_cases,
    missing,
    open_run,
    paused,
    texts_digest,
    what_happened,
)
from sere.eval.checkpoint import Checkpoint
from sere.eval.continuous_batching import supports_rows
from sere.eval.decode import decode, stop_ids
from sere.eval.generation import end_mark
from sere.eval.questions import Asked, encode, mark, takes_template
from sere.eval.statistics import paired_difference, wilson
from sere.eval.text import passages, score_texts, summarize
from sere.policies.spec import PolicySpec

if TYPE_CHECKING:
    from sere.integrations.transformers import Handle
    from sere.table import SimilarityTable

ALL = "all"
"""The name under which a case gives its result over all tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to evaluate.

    Attributes:
        settings: The ways to route; the first is ``off``.
        batch_sizes: Rows of a decode step.
        questions: The questions, in the order in which they are decoded.
        passages: English passages for perplexity and divergence; none if empty.
        max_new_tokens: Most tokens an answer may have.
        seed: Of the random control; questions of tasks were drawn with it too.
        chat_template: Whether a question that is plain text is put to the model as a user's message, where
            its tokenizer has a chat template.
        source: The file that the questions are from, as a record names it; None for tasks.
    """

    settings: Sequence[PolicySpec]
    batch_sizes: Sequence[int]
    questions: Sequence[Asked]
    passages: Sequence[str] = ()
    max_new_tokens: int = 256
    seed: int = 0
    chat_template: bool = False
    source: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.questions:
            raise InputError("evaluate: expected at least one question, got none")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        check_cases(self)

    def describe(self) -> dict[str, Any]:
        """Return what a record says of the plan beside settings and batch sizes."""
        asked: dict[str, Any] = {
            "tasks": dict(Counter(question.task for question in self.questions)),
            "questions_digest": texts_digest([question.key for question in self.questions]),
        }
        if self.source is not None:
            asked |= {"source": dict(self.source), "chat_template": self.chat_template}
        return asked | {
            "passages": len(self.passages),
            "passages_digest": texts_digest(self.passages),
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "intervals": {"share": "Wilson", "difference": "Newcombe 1998, paired (method 10)"},
        }


def evaluate(
    model: Any,
    tokenizer: Any,
    plan: Plan,
    *,
    table: SimilarityTable | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Decode all questions under every setting at every batch size and score them.

    Args:
        model: A causal language model of Transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        plan: What to evaluate.
        table: Similarities, for settings that need them.
        checkpoint: A file that keeps finished cases, so that an interrupted run continues; deleted
            at the end.
        progress: Shows how far each case is.

    Returns:
        A JSON-ready record: what was measured and with what (``model``, ``table``, ``plan``,
        ``provenance``), and one entry of ``cases`` for each batch size and setting. Shares and their
        intervals are in [0, 1]; differences are to ``off`` at the same batch size, on the same questions.

    Raises:
        DataError: The chat template refuses a question, or it has no tokens, or one beyond the embedding.
        TableMismatch: The table belongs to another model.
        ConfigError: A setting needs a table and there is none.
    """
    check_settings(plan.settings, table)
    plan = for_tokenizer(plan, tokenizer)
    head, kept = open_run(model, plan, table, checkpoint)
    prompts = encode(tokenizer, [question.prompt for question in plan.questions], chat=plan.chat_template)
    check_prompts(prompts, plan.max_new_tokens, tokenizer, model)
    run = _Run(model, tokenizer, plan, prompts, table, progress)
    with kept.going_on():
        for setting, batch_size in missing(kept, plan, plan.settings):
            kept.put(case_name(setting, batch_size), run.measure(setting, batch_size))
    return completed(head, kept, plan)


def for_tokenizer(plan: Plan, tokenizer: Any) -> Plan:
    """Return the plan as it will be: with a chat template only where one is used."""
    prompts = [question.prompt for question in plan.questions]
    return replace(plan, chat_template=plan.chat_template and takes_template(tokenizer, prompts))


@dataclass(frozen=True, slots=True)
class _Run:
    """What every case needs."""

    model: Any
    tokenizer: Any
    plan: Plan
    prompts: Sequence[Sequence[int]]
    table: SimilarityTable | None
    progress: Progress

    def measure(self, setting: PolicySpec, batch_size: int) -> dict[str, Any]:
        """Return the record of one case, without the comparison to ``off``."""
        plan, name = self.plan, case_name(setting, batch_size)
        stop = stop_ids(self.model, self.tokenizer)
        # Every row of our own decode steps is real; generate feeds rows that have ended this token.
        pad = -1 if supports_rows(self.model) else end_mark(self.model, stop)
        with (
            self.progress(name, len(self.prompts) + len(plan.passages)) as tick,
            apply_setting(self.model, setting, self.table, seed=plan.seed, pad_token_id=pad) as handle,
        ):
            handle.quiet = True  # the record says why nothing changed, so the log need not
            decoded = decode(
                self.model, self.prompts, batch_size=batch_size, max_new_tokens=plan.max_new_tokens,
                stop=stop, on_finished=tick,
            )  # fmt: skip
            happened = what_happened(handle)
            text = self._text(batch_size, handle, tick)
        right = mark(self.tokenizer, plan.questions, decoded.tokens)
        return {
            "setting": setting.label,
            "batch_size": batch_size,
            "rows": decoded.rows,
            "loop": decoded.loop,
            "steps": len(decoded.step_ms),
            "step_ms_median": round(median(decoded.step_ms), 4) if decoded.step_ms else None,
            "answer_tokens": round(fmean(len(tokens) for tokens in decoded.tokens), 3),
            **happened,
            "text": text,
            "right": "".join("01"[answer] for answer in right),
        }

    def _text(self, batch_size: int, handle: Handle, tick: Callable[[], object]) -> dict[str, Any] | None:
        if not self.plan.passages:
            return None
        texts = passages(encode(self.tokenizer, self.plan.passages))
        scores = score_texts(
            self.model, texts, batch_size=batch_size, unmodified=lambda: paused(handle), on_finished=tick
        )
        return summarize(scores)


def completed(head: Mapping[str, Any], kept: Checkpoint, plan: Plan) -> dict[str, Any]:
    """Return the record of a run whose cases are all there, and remove their file."""
    record = {**head, "cases": compared(finished_cases(kept, plan), plan)}
    kept.delete()
    return record


def compared(cases: Sequence[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """Return the cases with results by task in place of bare marks, beside ``off`` at their batch size."""
    tasks = [question.task for question in plan.questions]
    places = {name: [i for i, task in enumerate(tasks) if task == name] for name in dict.fromkeys(tasks)}
    places[ALL] = list(range(len(tasks)))
    off = {case["batch_size"]: case["right"] for case in cases if case["setting"] == "off"}
    done = []
    for case in cases:
        base = None if case["setting"] == "off" else off[case["batch_size"]]
        results = {name: _result(case["right"], base, at) for name, at in places.items()}
        done.append({name: value for name, value in case.items() if name != "right"} | {"tasks": results})
    return done


def _result(right: str, base: str | None, places: Sequence[int]) -> dict[str, Any]:
    """Return one task's share of right answers and, where there is a base, the paired difference to it."""
    mine = [right[place] == "1" for place in places]
    result: dict[str, Any] = {
        "n": len(mine),
        "right": sum(mine),
        "share": asdict(wilson(sum(mine), len(mine))),
        "marks": "".join(right[place] for place in places),
    }
    if base is not None:
        result["difference"] = asdict(paired_difference(mine, [base[place] == "1" for place in places]))
    return result
