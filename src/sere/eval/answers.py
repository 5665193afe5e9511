"""Right answers: questions decoded under each setting, marked, and compared with the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sere.engines.side_by_side import rows_at_once
from sere.eval.decoding.greedy import decode, stop_rule
from sere.eval.decoding.static_batching import end_mark
from sere.eval.finished import case_name
from sere.eval.measure import Workbench
from sere.eval.plan import QuestionPlan
from sere.eval.questions import encode_prompts, mark
from sere.eval.statistics.by_question import paired_difference, wilson
from sere.eval.text import passage_texts, paused, score_texts, summarize
from sere.integrations.transformers.inputs import has_full_attention_cache
from sere.policies.spec import PolicySpec
from sere.summaries import summarize_handle

if TYPE_CHECKING:
    from sere.integrations.transformers import Handle

ALL = "all"
"""The name under which a case gives its result over all tasks."""


@dataclass(frozen=True, slots=True)
class RightAnswers:
    """Counts right answers in Transformers."""

    bench: Workbench
    plan: QuestionPlan

    def case(self, setting: PolicySpec, batch_size: int) -> dict[str, Any]:
        """Decode and mark all questions, and score the passages, under one setting at one batch size."""
        plan, model = self.plan, self.bench.model
        rule = stop_rule(model, self.bench.tokenizer, plan.max_new_tokens)
        # Every row of our own decode steps is real; generate feeds rows that have ended this token.
        pad = -1 if has_full_attention_cache(model) else end_mark(model, rule.ids)
        parts = len(self.bench.prompts) + len(plan.passages)
        at_once = rows_at_once(model, batch_size, len(self.bench.prompts))
        with self.bench.applied(
            setting, case_name(setting, batch_size), parts, seed=plan.seed, pad_token_id=pad,
            batch_size=batch_size,
        ) as (handle, tick):  # fmt: skip
            decoded = decode(model, self.bench.prompts, batch_size=at_once, rule=rule, on_finished=tick)
            happened = summarize_handle(handle)
            text = self._text(batch_size, handle, tick)
        right = mark(self.bench.tokenizer, plan.questions, decoded.tokens)
        rows = min(batch_size, len(self.bench.prompts))
        return {
            "setting": setting.label,
            "batch_size": batch_size,
            "rows": rows,
            "loop": decoded.loop,
            "steps": len(decoded.step_ms) * decoded.rows // rows,
            "answer_tokens": round(fmean(len(tokens) for tokens in decoded.tokens), 3),
            **happened,
            "text": text,
            "right": marks_text(right),
        }

    def _text(self, batch_size: int, handle: Handle, tick: Callable[[], object]) -> dict[str, Any] | None:
        if not self.plan.passages:
            return None
        texts = passage_texts(encode_prompts(self.bench.tokenizer, self.plan.passages))
        scores = score_texts(
            self.bench.model,
            texts,
            batch_size=rows_at_once(self.bench.model, batch_size, len(texts)),
            unmodified=lambda: paused(handle),
            on_finished=tick,
        )
        return summarize(scores)

    def result(self, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the cases with results per task."""
        return {"cases": compare_answers(cases, self.plan)}


def marks_text(right: Sequence[bool]) -> str:
    """Return marks as text: ``1`` for a right answer, ``0`` for a wrong one."""
    return "".join("01"[answer] for answer in right)


def compare_answers(cases: Sequence[dict[str, Any]], plan: QuestionPlan) -> list[dict[str, Any]]:
    """Return the cases with results per task instead of bare marks, compared with ``off`` at their B.

    Args:
        cases: As measured; ``right`` holds the marks.
        plan: What was asked.
    """
    tasks = [question.task for question in plan.questions]
    indices = {name: [i for i, task in enumerate(tasks) if task == name] for name in dict.fromkeys(tasks)}
    indices[ALL] = list(range(len(tasks)))
    baseline = {case["batch_size"]: case["right"] for case in cases if case["setting"] == "off"}
    done = []
    for case in cases:
        base = None if case["setting"] == "off" else baseline[case["batch_size"]]
        results = {name: _result(case["right"], base, at) for name, at in indices.items()}
        done.append({name: value for name, value in case.items() if name != "right"} | {"tasks": results})
    return done


def _result(right: str, base: str | None, indices: Sequence[int]) -> dict[str, Any]:
    """Return one task's share of right answers and, if there is a base, the paired difference to it."""
    mine = [right[index] == "1" for index in indices]
    result: dict[str, Any] = {
        "n": len(mine),
        "right": sum(mine),
        "share": asdict(wilson(sum(mine), len(mine))),
        "marks": marks_text(mine),
    }
    if base is not None:
        result["difference"] = asdict(paired_difference(mine, [base[index] == "1" for index in indices]))
    return result
