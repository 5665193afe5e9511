"""Tune a model: simulate, measure, allocate, verify."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from typing import Any

from sere.calibrate.own_texts import write_prompts
from sere.calibrate.vocabulary import check_prompts
from sere.eval.digests import weights_digest
from sere.eval.questions import encode_prompts
from sere.eval.text import Text
from sere.progress import NO_PROGRESS, Progress
from sere.provenance import provenance
from sere.structure import identify
from sere.table import SimilarityTable
from sere.table.neighbors import has_factors
from sere.tune.allocate import BETWEEN, Allocation
from sere.tune.answers import Examiner, accepted_divergence, prices
from sere.tune.checks import check_reach, measurable
from sere.tune.gains import Chosen, choose_gain
from sere.tune.layers import Layered, find_layers
from sere.tune.measure import Meter, continue_prompts
from sere.tune.plan import Half, TunePlan
from sere.tune.plans import ByLayer, Plans
from sere.tune.record import about_texts, make_record
from sere.tune.sensitivity import runs_of
from sere.tune.shares import shared
from sere.tune.simulate import simulate_layers
from sere.tune.solve import Solution, solve
from sere.tune.speed import Speed, find_ceilings, keep_ceilings
from sere.tune.tiers import make_tier
from sere.tune.verify import verify
from sere.tune.work import Work, resumable

_PROMPTS = "prompts"


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
        DataError: A prompt cannot be read, or no continuation has a token to score; or the model, asked to
            write prompts, writes too few.
        ConfigError: A speedup is out of reach.
        InputError: The model's logits are not finite numbers, there are too few prompts for every batch size,
            or the folder holds the measurements of another run.
        AlreadyApplied: Re-routing is active on the model.
    """
    identity = identify(model)
    table.check(identity)
    plan = plan.for_tokenizer(tokenizer)
    cells = simulate_all(table, plan)
    run = {
        "model": identity.digest,
        "weights": weights_digest(model),
        "table": table.fingerprint,
        "plan": plan.describe(),
        "versions": provenance()["versions"],
    }
    with resumable(work_dir, run, keep=keep_work) as work:
        ceilings = find_ceilings(model, work) if plan.by == "time" else None
        speed = Speed.of(model, table, ceilings)
        check_reach(plan, Plans.uniform(cells).expected, speed)
        if ceilings is not None:
            keep_ceilings(ceilings, work)
        plan = _with_prompts(plan, model, tokenizer, work)
        halves = plan.halves()
        rows = measurable(plan, halves)
        encoded = encode_prompts(tokenizer, plan.prompts, chat=plan.chat_template)
        check_prompts(encoded, plan.max_new_tokens, tokenizer, model)
        prompts: dict[Half, list[list[int]]] = {half: [encoded[i] for i in at] for half, at in halves.items()}
        tuning = _Tuning(model, tokenizer, table, plan, rows, cells, speed, work)
        return tuning.run(halves, prompts, progress)


def _with_prompts(plan: TunePlan, model: Any, tokenizer: Any, work: Work) -> TunePlan:
    """Return the plan with its prompts, or with those that the model writes, or wrote in an earlier run."""
    if not plan.own_prompts:
        return plan
    known = work.done.get(_PROMPTS)
    written = known or write_prompts(model, tokenizer, plan.max_prompts, seed=plan.seed)
    plan = plan.with_prompts(written)
    if known is None:
        work.put(_PROMPTS, written)
    return plan


def simulate_all(table: SimilarityTable, plan: TunePlan, min_gain: float = 0.0) -> ByLayer:
    """Simulate every number of rows that a tier says something of, layer by layer.

    Raises:
        TableError: The table does not hold the router's choices.
    """
    rows = sorted({*plan.batch_sizes, *BETWEEN})
    return {B: simulate_layers(table, B, min_gain=min_gain, seed=plan.seed) for B in rows}


@dataclass(slots=True)
class _Tuning:
    """One run: its parts in their order."""

    model: Any
    tokenizer: Any
    table: SimilarityTable
    plan: TunePlan
    rows: list[int]
    cells: ByLayer
    speed: Speed
    work: Work

    def run(
        self,
        halves: Mapping[Half, Sequence[int]],
        prompts: Mapping[Half, list[list[int]]],
        progress: Progress,
    ) -> Tuned:
        """Tune and return the result."""
        goals, K = self.plan.goals, max(self.table.identity.slots.values())
        E = max(layer.num_experts for layer in self.table.layers.values())
        each, cases = len(prompts["tuning"]), len(self.rows) * len(goals)
        count, units = sum(map(len, prompts.values())), each * 2 * (len(self.rows) + cases)
        with shared(progress, "tuning", count + units) as share:
            texts = continue_prompts(
                self.model, self.tokenizer, prompts, self.work,
                max_new_tokens=self.plan.max_new_tokens, tick=share(count),
            )  # fmt: skip
            meter = Meter(self.model, self.table, texts, self.work, share(units))
            examiner = self._examiner(halves, prompts)
            uniform = Plans.uniform(self.cells)
            accepted = self._accepted(meter, examiner, uniform)
            same = solve(uniform, accepted.values(), self.rows, meter, num_experts=E)
        planned = {name: same.allocate(goal, accepted[name], self.speed, K) for name, goal in goals.items()}
        layered = Layered()
        if not self.plan.uniform and len(uniform.layers) > 1:
            runs = runs_of(len(uniform.layers), len(self.rows), self.plan.layer_runs)
            units = each * (runs + 2 * cases)
            with shared(progress, "layers", units) as share:
                layered = find_layers(
                    self.cells, planned, accepted, self.rows, same,
                    Meter(self.model, self.table, texts, self.work, share(units)),
                    runs=self.plan.layer_runs, num_experts=E,
                )  # fmt: skip
        chosen = self._gains(planned, layered, same, accepted, texts, each, progress)
        about, tiers = about_texts(texts, self.plan), {}
        with shared(progress, "verifying", each * cases) as share:
            meter = Meter(self.model, self.table, texts, self.work, share(each * cases))
            for name, goal in goals.items():
                one = chosen[name].best
                held, verified = verify(
                    one.allocation, self.rows, meter.under(one.min_gain), one.plans, one.known
                )
                answers = {}
                if examiner is not None:
                    answers = {
                        B: examiner.under(one.min_gain).describe(B, one.plans.at(B, cell.active_experts))
                        for B, cell in verified.items()
                    }
                tiers[name] = make_tier(
                    name, goal, held, verified, self.speed, about, answers, chosen[name],
                    layered.compared.get(name),
                )  # fmt: skip
        table = self.table.with_tiers({**self.table.tiers, **tiers})
        return Tuned(table, make_record(table, tiers, same, layered, meter, self.speed) | about)

    def _gains(
        self, planned: Mapping[str, Allocation], layered: Layered, same: Solution,
        accepted: Mapping[str, float], texts: Mapping[Half, Sequence[Text]], each: int, progress: Progress,
    ) -> dict[str, Chosen]:  # fmt: skip
        """Choose the least gain of each tier, for the layers' numbers that it keeps."""
        K = max(self.table.identity.slots.values())
        speed = self.speed if has_factors(self.table.layers) else replace(self.speed, ceilings=None)
        cells_under = cache(lambda gain: simulate_all(self.table, self.plan, gain))
        units, found = each * 2 * len(self.rows) * len(planned), {}
        with shared(progress if speed.ceilings else NO_PROGRESS, "least gains", units) as share:
            meter = Meter(self.model, self.table, texts, self.work, share(units))
            for name, goal in self.plan.goals.items():
                own = layered.kept(name)
                one = planned[name] if own is None else own.allocate(goal, accepted[name], self.speed, K)
                found[name] = choose_gain(one, own or same, cells_under, self.rows, meter, speed)
        return found

    def _examiner(self, halves: Mapping[Half, Sequence[int]], prompts: Any) -> Examiner | None:
        questions = self.plan.questions
        if questions is None:
            return None
        asked = {half: [questions[i] for i in at] for half, at in halves.items()}
        return Examiner(
            self.model, self.tokenizer, self.table, asked, prompts, self.plan.max_new_tokens, self.work
        )

    def _accepted(self, meter: Meter, examiner: Examiner | None, uniform: Plans) -> dict[str, float]:
        """Return the divergence that each tier accepts; of one that wants a speedup, any."""
        goals = self.plan.goals
        found = {name: goal.value if goal.kind == "kl" else inf for name, goal in goals.items()}
        if examiner is not None and any(goal.kind == "loss" for goal in goals.values()):
            paid = prices(examiner, meter, uniform.expected, self.rows)
            found |= {
                name: accepted_divergence(goal.value, paid)
                for name, goal in goals.items()
                if goal.kind == "loss"
            }
        return found
