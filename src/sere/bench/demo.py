"""The demonstration: held-out questions decoded off and on, the runs taking turns."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from sere.bench.timing import Times
from sere.engines.transformers import Resumed, apply_setting
from sere.eval.decoding.greedy import decode_steps, stop_rule
from sere.eval.questions import encode_prompts, mark
from sere.eval.statistics.by_question import paired_difference, wilson
from sere.eval.tasks import Question
from sere.policies.spec import PolicySpec
from sere.progress import NO_PROGRESS, Progress
from sere.provenance import provenance
from sere.summaries import summarize_table

if TYPE_CHECKING:
    from sere.integrations.transformers import LayerStats
    from sere.policies.base import Policy
    from sere.table import SimilarityTable

logger = logging.getLogger("sere")

# Steps that a run decodes before the next run's turn: few, so that slow changes of the machine affect all
# alike; enough, so that setting and removing the hooks (not timed) stays cheap.
SLICE = 12
# In every fourth turn experts are counted, which takes time, and no run is timed.
COUNT_EVERY = 4


@dataclass(frozen=True, slots=True)
class Round:
    """One batch size of the demonstration.

    Attributes:
        batch_size: Rows of a step.
        questions: How many questions are decoded.
    """

    batch_size: int
    questions: int


@dataclass(slots=True)
class _Run:
    """One setting at one batch size, while it decodes.

    Attributes:
        steps: Decodes one step per turn and yields its time in ms.
        answers: Tokens per question, once it has ended.
        policy: The policy of a setting that needs no table, resumed at each turn: otherwise the control's
            draws would repeat in each turn.
        slices: Times of the steps in ms, per turn; the last turn, in which the run ended, is shorter.
        sums: Sums over the counted steps and layers, by counter.
        idle: Per counted turn, why nothing changed in it, or None.
    """

    setting: PolicySpec
    steps: Iterator[float]
    answers: dict[int, list[int]]
    policy: Policy | None
    slices: list[list[float]] = field(default_factory=list)
    sums: Counter[str] = field(default_factory=Counter)
    idle: list[str | None] = field(default_factory=list)
    done: bool = False


def demonstrate(
    model: Any,
    tokenizer: Any,
    table: SimilarityTable,
    *,
    settings: Sequence[PolicySpec],
    rounds: Sequence[Round],
    questions: Sequence[Question],
    max_new_tokens: int = 256,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Decode questions at each batch size under each setting; count experts, time and right answers.

    The runs of a batch size take turns of ``SLICE`` steps. ``off`` is the model without any hook.

    Args:
        model: A causal language model of Transformers with full attention.
        tokenizer: Its tokenizer.
        table: Its similarities.
        settings: The ways to route; the first is ``off``.
        rounds: The batch sizes, each with the number of questions from the list's beginning.
        questions: The questions.
        max_new_tokens: Most tokens an answer may have.
        progress: Shows how far each batch size is.

    Returns:
        A JSON-ready record with one entry of ``cases`` for each batch size and setting.

    Raises:
        TableMismatch: The table belongs to another model.
    """
    cases = []
    for one in rounds:
        asked = questions[: one.questions]
        prompts = encode_prompts(tokenizer, [question.prompt for question in asked])
        with progress(f"batch size {one.batch_size}", len(asked) * len(settings)) as tick:
            runs = [
                _start(model, tokenizer, setting, table, prompts, one.batch_size, max_new_tokens, tick)
                for setting in settings
            ]
            _take_turns(model, table, runs)
        for run in runs:
            if all(run.idle):
                logger.warning("sere: B=%d %s: %s", one.batch_size, run.setting.label, run.idle[0])
        cases += _cases(tokenizer, asked, one.batch_size, runs)
    return {
        "format": "sere-demo-3",
        "model": table.identity.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "experts_implementation": getattr(model.config, "_experts_implementation", None),
        "num_experts": table.identity.num_experts,
        "top_k": table.identity.top_k,
        "table": summarize_table(table),
        "cases": cases,
        "provenance": provenance(),
    }


def _start(
    model: Any,
    tokenizer: Any,
    setting: PolicySpec,
    table: SimilarityTable,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    max_new_tokens: int,
    tick: Callable[[], object],
) -> _Run:
    answers: dict[int, list[int]] = {}

    def finished(index: int, tokens: list[int]) -> None:
        answers[index] = tokens
        tick()

    steps = decode_steps(
        model, prompts, batch_size=batch_size, rule=stop_rule(model, tokenizer, max_new_tokens),
        on_finished=finished,
    )  # fmt: skip
    return _Run(setting, steps, answers, None if setting.needs_table else Resumed(setting.build(table)))


def _take_turns(model: Any, table: SimilarityTable, runs: Sequence[_Run]) -> None:
    """Let the runs decode slice by slice until all have ended; the next turn starts with the next run."""
    for turn in count():
        if all(run.done for run in runs):
            return
        for offset in range(len(runs)):
            run = runs[(turn + offset) % len(runs)]
            if run.done:
                continue
            counted = turn % COUNT_EVERY == 0
            with _context(model, table, run, counted) as handle:
                if handle is not None:
                    # One turn is too short to say that nothing changes; the run is judged at its end.
                    handle.quiet = True
                run.slices.append(list(islice(run.steps, SLICE)))
                if handle is not None:
                    if counted:
                        _add_counts(run.sums, handle.stats())
                    run.idle.append(handle.why_nothing_changed())
            run.done = len(run.slices[-1]) < SLICE


def _context(model: Any, table: SimilarityTable, run: _Run, counted: bool) -> AbstractContextManager[Any]:
    if run.setting.name == "off" and not counted:
        return nullcontext()
    # In timed turns, steps that surely change nothing are not counted either, as in use.
    return apply_setting(model, run.setting, table, policy=run.policy, counts_all=counted)


def _add_counts(sums: Counter[str], stats: Sequence[LayerStats]) -> None:
    for layer in stats:
        sums["steps"] += layer.steps
        sums["distinct_after"] += round(layer.distinct_after * layer.steps)


def _timed(runs: Sequence[_Run]) -> list[Times]:
    """Return the runs' times in the turns that all decoded completely and in which none was counted."""
    complete = min(len(run.slices) for run in runs) - 1
    turns = [turn for turn in range(complete) if turn % COUNT_EVERY] or [0]
    return [Times([run.slices[turn] for turn in turns]) for run in runs]


def _cases(
    tokenizer: Any, asked: Sequence[Question], batch_size: int, runs: Sequence[_Run]
) -> list[dict[str, Any]]:
    """Return the records of one batch size, ``off`` first."""
    marks = [mark(tokenizer, asked, [run.answers[index] for index in range(len(asked))]) for run in runs]
    timed = _timed(runs)
    cases = []
    for run, right, times in zip(runs, marks, timed, strict=True):
        steps = max(1, run.sums["steps"])
        case = {
            "batch_size": batch_size,
            "setting": run.setting.label,
            "distinct_after": run.sums["distinct_after"] / steps,
            "tpot_ms": asdict(times.tpot_ms()),
            "speedup": asdict(times.speedup_over(timed[0])),
            "n": len(right),
            "right": sum(right),
            "share": asdict(wilson(sum(right), len(right))),
        }
        if run is not runs[0]:
            case["difference"] = asdict(paired_difference(right, marks[0]))
        cases.append(case)
    return cases
