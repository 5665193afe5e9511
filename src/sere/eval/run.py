"""Evaluate a list of settings at a list of batch sizes in one run, all against the unmodified model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from hashlib import blake2b
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from sere.errors import InputError
from sere.eval.apply import apply_setting, check_settings
from sere.eval.checkpoint import Checkpoint
from sere.eval.decode import decode, stop_ids
from sere.eval.questions import encode, mark
from sere.eval.settings import Setting, check_off_first
from sere.eval.statistics import paired_difference, wilson
from sere.eval.tasks import Question
from sere.eval.text import score_text
from sere.provenance import provenance

if TYPE_CHECKING:
    from sere.identity import ModelIdentity
    from sere.reroute.stats import LayerStats
    from sere.table import SimilarityTable

Progress = Callable[[str, int], AbstractContextManager[Callable[[], object]]]
"""Opens a stretch of work of a name and a number of parts; what it gives is called after each part."""

NO_PROGRESS: Progress = lambda _name, _total: nullcontext(lambda: None)  # noqa: E731
"""Shows nothing."""

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
        seed: Of the random control; questions were drawn with it too.
    """

    settings: Sequence[Setting]
    batch_sizes: Sequence[int]
    questions: Sequence[Question]
    passages: Sequence[str] = ()
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.questions:
            raise InputError("evaluate: expected at least one question, got none")
        check_off_first(self.settings)
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InputError(f"evaluate: expected batch sizes of at least 1, got {list(self.batch_sizes)}")


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
        InputError: The plan is empty somewhere.
        TableMismatch: The table belongs to another model.
        ConfigError: A setting needs a table and there is none.
    """
    check_settings(plan.settings, table)
    head = _head(model, plan, table)
    kept = checkpoint_of(head, checkpoint, weights=_weights_digest(model))
    run = _Run(model, tokenizer, plan, table, progress)
    with kept.going_on():
        for setting, batch_size in missing(kept, plan, plan.settings):
            kept.put(case_name(setting, batch_size), run.measure(setting, batch_size))
    return completed(head, kept, plan)


@dataclass(frozen=True, slots=True)
class _Run:
    """What every case needs."""

    model: Any
    tokenizer: Any
    plan: Plan
    table: SimilarityTable | None
    progress: Progress

    def measure(self, setting: Setting, batch_size: int) -> dict[str, Any]:
        """Return the record of one case, without the comparison to ``off``."""
        plan, name = self.plan, case_name(setting, batch_size)
        prompts = encode(self.tokenizer, [question.prompt for question in plan.questions])
        total = len(prompts) + len(plan.passages)
        with (
            self.progress(name, total) as tick,
            apply_setting(self.model, setting, self.table, seed=plan.seed) as handle,
        ):
            stop = stop_ids(self.model, self.tokenizer)
            decoded = decode(
                self.model, prompts, batch_size=batch_size, max_new_tokens=plan.max_new_tokens, stop=stop,
                on_finished=tick,
            )  # fmt: skip
            experts = summarise_layers(handle.stats())
            text = self._text(batch_size, tick)
        right = mark(self.tokenizer, plan.questions, decoded.tokens)
        return {
            "setting": setting.label,
            "batch_size": batch_size,
            "rows": decoded.rows,
            "loop": decoded.loop,
            "steps": len(decoded.step_ms),
            "step_ms_median": round(median(decoded.step_ms), 4) if decoded.step_ms else None,
            "answer_tokens": round(fmean(len(tokens) for tokens in decoded.tokens), 3),
            "experts": experts,
            "text": text,
            "right": "".join("01"[answer] for answer in right),
        }

    def _text(self, batch_size: int, tick: Callable[[], object]) -> dict[str, Any] | None:
        if not self.plan.passages:
            return None
        passages = encode(self.tokenizer, self.plan.passages)
        score = score_text(self.model, passages, batch_size=batch_size, on_finished=tick)
        return None if score is None else asdict(score)


def summarise_layers(stats: Sequence[LayerStats]) -> dict[str, Any]:
    """Return the layers' counts as means over layers, with the layers' own values beside them.

    Args:
        stats: What ``handle.stats()`` gave.

    Returns:
        ``before`` and ``after``: distinct experts of a layer and step; ``moved``: share of slots
        re-routed; ``critical``: critical experts of a layer and step; ``layers``: the same by layer.
    """
    layers = [
        {
            "index": layer.index,
            "before": layer.distinct_before,
            "after": layer.distinct_after,
            "moved": layer.slots_moved,
            "critical": layer.critical,
        }
        for layer in stats
        if layer.steps
    ]
    names = ("before", "after", "moved", "critical")
    means = {name: fmean(layer[name] for layer in layers) if layers else None for name in names}
    return means | {"layers": layers}


def _weights_digest(model: Any) -> str:
    """Return what tells models of equal shape apart: a digest over samples of every weight."""
    digest = blake2b(digest_size=16)
    for name, weight in model.state_dict().items():
        flat = weight.detach().flatten()
        some = flat[:: max(1, flat.numel() // 256)].double().cpu()
        digest.update(name.encode() + some.numpy().tobytes())
    return digest.hexdigest()


def _head(model: Any, plan: Plan, table: SimilarityTable | None) -> dict[str, Any]:
    """Return what identifies the run."""
    from sere.structure import identify

    identity = identify(model)
    if table is not None:
        table.check(identity)
    return head_of(
        plan,
        identity,
        table,
        dtype=str(model.dtype).removeprefix("torch."),
        implementation=getattr(model.config, "_experts_implementation", None),
    )


def head_of(
    plan: Plan,
    identity: ModelIdentity,
    table: SimilarityTable | None,
    *,
    dtype: str,
    implementation: str | None,
) -> dict[str, Any]:
    """Return what identifies a run, whatever engine it runs on.

    Args:
        plan: What is evaluated.
        identity: Of the model.
        table: Similarities, or None.
        dtype: Of the weights.
        implementation: What computes the experts.
    """
    return {
        "format": "sere-eval-1",
        "model": {
            "name": identity.name,
            "digest": identity.digest,
            "E": identity.E,
            "K": identity.K,
            "dtype": dtype,
            "experts_implementation": implementation,
        },
        "table": None
        if table is None
        else {"fingerprint": table.fingerprint, "metric": table.metric, "num_tokens": table.num_tokens},
        "plan": {
            "settings": [setting.label for setting in plan.settings],
            "batch_sizes": list(plan.batch_sizes),
            "tasks": dict(Counter(question.task for question in plan.questions)),
            "questions_digest": _digest([question.prompt for question in plan.questions]),
            "passages": len(plan.passages),
            "passages_digest": _digest(plan.passages),
            "max_new_tokens": plan.max_new_tokens,
            "seed": plan.seed,
            "confidence": 0.95,
            "intervals": {"share": "Wilson", "difference": "Newcombe 1998, paired (method 10)"},
        },
        "provenance": provenance(),
    }


def case_name(setting: Setting, batch_size: int) -> str:
    """Return what a case is called in progress and checkpoints."""
    return f"B={batch_size} {setting.label}"


def checkpoint_of(
    head: Mapping[str, Any], path: str | os.PathLike[str] | None, *, weights: str
) -> Checkpoint:
    """Return the finished cases of a run, those of an interrupted one among them.

    Args:
        head: What `head_of` returned.
        path: The file that keeps them; None for none.
        weights: A digest that tells models of equal shape apart.
    """
    key = {name: head[name] for name in ("model", "table", "plan")}
    return Checkpoint(path, key | {"weights": weights, "versions": head["provenance"]["versions"]})


def missing(kept: Checkpoint, plan: Plan, settings: Sequence[Setting]) -> list[tuple[Setting, int]]:
    """Return the cases of some of the plan's settings that are still to be measured, by batch size."""
    cases = [(setting, batch_size) for batch_size in plan.batch_sizes for setting in settings]
    return [case for case in cases if kept.get(case_name(*case)) is None]


def completed(head: Mapping[str, Any], kept: Checkpoint, plan: Plan) -> dict[str, Any]:
    """Return the record of a run whose cases are all there, by batch size, and remove their file."""
    cases = [
        kept.cases[case_name(setting, batch_size)]
        for batch_size in plan.batch_sizes
        for setting in plan.settings
    ]
    record = {**head, "cases": compared(cases, plan)}
    kept.delete()
    return record


def _digest(texts: Sequence[str]) -> str:
    """Return a digest of the texts in their order."""
    return blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


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
