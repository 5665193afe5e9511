"""Tune a model: simulate, measure, allocate, verify."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

from sere.calibrate.vocabulary import check_prompts
from sere.eval.digests import weights_digest
from sere.eval.questions import encode_prompts
from sere.progress import NO_PROGRESS, Progress
from sere.provenance import provenance
from sere.structure import identify
from sere.table import SimilarityTable
from sere.tune.allocate import BETWEEN, Allocation, allocate, search
from sere.tune.answers import Examiner, accepted_divergence
from sere.tune.checks import check_reach, measurable
from sere.tune.measure import Meter, continue_prompts
from sere.tune.plan import Half, TunePlan
from sere.tune.record import about_texts, make_record
from sere.tune.search import Curve
from sere.tune.simulate import Simulated, simulate
from sere.tune.speed import StepBytes, fewest_for
from sere.tune.tiers import make_tier
from sere.tune.verify import verify
from sere.tune.work import Work, resumable


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a tuning found.

    Attributes:
        table: The table with the new tiers; others of other names stay.
        record: All that was simulated and measured; JSON-ready.
    """

    table: SimilarityTable
    record: dict[str, Any]


def tune_plan(
    model: Any,
    tokenizer: Any,
    table: SimilarityTable,
    plan: TunePlan,
    *,
    work_dir: str | os.PathLike[str] | None = None,
    keep_work: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Tuned:
    """Find the fewest experts for the losses that a plan accepts.

    Args:
        model: A causal language model of Transformers, unmodified, in evaluation mode.
        tokenizer: Its tokenizer.
        table: Its similarities, with the router's choices on calibration tokens.
        plan: What to tune.
        work_dir: A folder that keeps finished measurements, so that an interrupted run can continue; None
            keeps nothing.
        keep_work: Whether the folder stays in the end.
        progress: Shows how far the work is.

    Raises:
        TableMismatch: The table belongs to another model.
        TableError: The table does not hold the router's choices.
        DataError: A prompt cannot be read, or no continuation has a token to score.
        ConfigError: A speedup is out of reach.
        InputError: The model's logits are not finite numbers, there are too few prompts for every batch size,
            or the folder holds the measurements of another run.
        AlreadyApplied: Re-routing is active on the model.
    """
    identity = identify(model)
    table.check(identity)
    plan = plan.for_tokenizer(tokenizer)
    halves = plan.halves()
    rows = measurable(plan, halves)
    encoded = encode_prompts(tokenizer, plan.prompts, chat=plan.chat_template)
    check_prompts(encoded, plan.max_new_tokens, tokenizer, model)
    prompts: dict[Half, list[list[int]]] = {half: [encoded[i] for i in at] for half, at in halves.items()}
    simulated = simulate_all(table, plan)
    size = StepBytes.of(model)
    check_reach(plan, simulated, size)
    run = {
        "model": identity.digest,
        "weights": weights_digest(model),
        "table": table.fingerprint,
        "plan": plan.describe(),
        "versions": provenance()["versions"],
    }
    with resumable(work_dir, run, keep=keep_work) as work:
        tuning = _Tuning(model, tokenizer, table, plan, rows, simulated, size, work)
        return tuning.run(halves, prompts, progress)


def simulate_all(table: SimilarityTable, plan: TunePlan) -> dict[int, Simulated]:
    """Simulate every number of rows that a tier says something of.

    Raises:
        TableError: The table does not hold the router's choices.
    """
    rows = sorted({*plan.batch_sizes, *BETWEEN})
    return {B: simulate(table, B, seed=plan.seed) for B in rows}


@dataclass(slots=True)
class _Tuning:
    """One run: its parts in their order."""

    model: Any
    tokenizer: Any
    table: SimilarityTable
    plan: TunePlan
    rows: list[int]
    simulated: dict[int, Simulated]
    size: StepBytes
    work: Work

    def run(
        self,
        halves: Mapping[Half, Sequence[int]],
        prompts: Mapping[Half, list[list[int]]],
        progress: Progress,
    ) -> Tuned:
        """Tune and return the result."""
        count, each = sum(map(len, prompts.values())), len(prompts["tuning"])
        units = each * len(self.rows) * (2 + 2 * len(self.plan.goals))
        with _shared(progress, "tuning", count + units) as share:
            texts = continue_prompts(
                self.model, self.tokenizer, prompts, self.work,
                max_new_tokens=self.plan.max_new_tokens, tick=share(count),
            )  # fmt: skip
            meter = Meter(self.model, self.table, texts, self.work, share(units))
            examiner = self._examiner(halves, prompts)
            accepted = self._accepted(meter, examiner)
            curves = self._search(accepted, meter)
        known = [pair for curve in curves.values() for pair in curve.pairs()]
        about, tiers = about_texts(texts, self.plan), {}
        units = len(prompts["held-out"]) * len(self.rows) * len(self.plan.goals)
        with _shared(progress, "verifying", units) as share:
            meter = Meter(self.model, self.table, texts, self.work, share(units))
            for name, goal in self.plan.goals.items():
                planned = self._allocate(name, accepted, curves)
                held, verified = verify(planned, self.rows, meter, self.simulated, known)
                answers = {}
                if examiner is not None and goal.kind == "loss":
                    answers = {B: examiner.describe(B, one.active_experts) for B, one in verified.items()}
                tiers[name] = make_tier(name, goal, held, verified, self.size, about, answers)
        table = self.table.with_tiers({**self.table.tiers, **tiers})
        return Tuned(table, make_record(table, tiers, self.simulated, curves, meter, self.size) | about)

    def _examiner(self, halves: Mapping[Half, Sequence[int]], prompts: Any) -> Examiner | None:
        questions = self.plan.questions
        if questions is None:
            return None
        asked = {half: [questions[i] for i in at] for half, at in halves.items()}
        return Examiner(
            self.model, self.tokenizer, self.table, asked, prompts, self.plan.max_new_tokens, self.work
        )

    def _accepted(self, meter: Meter, examiner: Examiner | None) -> dict[str, float]:
        """Return the divergence that each tier accepts; of one that wants a speedup, any."""
        found = {}
        for name, goal in self.plan.goals.items():
            if goal.kind == "loss" and examiner is not None:
                found[name] = accepted_divergence(goal.value, examiner, meter, self.simulated, self.rows)
            else:
                found[name] = goal.value if goal.kind == "kl" else inf
        return found

    def _search(self, accepted: Mapping[str, float], meter: Meter) -> dict[int, Curve]:
        finite = [loss for loss in accepted.values() if loss < inf]

        def measure(rows: int, active_experts: int) -> float:
            return meter.loss("tuning", rows, active_experts).mean.value

        return search(finite, self.simulated, self.rows, measure, num_experts=self.table.num_experts)

    def _allocate(self, name: str, accepted: Mapping[str, float], curves: Mapping[int, Curve]) -> Allocation:
        goal, top_k = self.plan.goals[name], self.table.identity.top_k
        if goal.kind != "speedup":
            return allocate(accepted[name], curves, self.simulated, top_k)
        found = {B: fewest_for(goal.value, cells, self.size) for B, cells in self.simulated.items()}
        return Allocation(inf, {1: top_k} | found)


@contextmanager
def _shared(progress: Progress, name: str, total: int) -> Iterator[Callable[[int], Callable[[], object]]]:
    """Show progress of work of about so many units.

    Yields:
        Takes a number of units and returns what is called after each: more calls than that show nothing.
    """
    with progress(name, total) as tick:

        def share(units: int) -> Callable[[], object]:
            left = iter(range(units))
            return lambda: None if next(left, None) is None else tick()

        yield share
