"""Tiers with their evidence: what a table keeps of a tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sere.table import Tier
from sere.tune.allocate import Allocation
from sere.tune.choose import Comparison
from sere.tune.gains import Chosen
from sere.tune.plan import Goal
from sere.tune.speed import Speed
from sere.tune.verify import Verified


def make_tier(
    name: str,
    goal: Goal,
    allocation: Allocation,
    verified: Mapping[int, Verified],
    speed: Speed,
    about: Mapping[str, Any],
    answers: Mapping[int, Mapping[str, Any]],
    chosen: Chosen,
    comparison: Comparison | None,
) -> Tier:
    """Return a tier with what was measured of it.

    Args:
        name: The tier's name.
        goal: What was wanted.
        allocation: M by rows.
        verified: What was measured on held-out prompts, by rows.
        speed: Compares steps.
        about: What all tiers of a tuning say: texts, versions, time; JSON-ready.
        answers: What it lost in right answers, by rows; empty if none were asked.
        chosen: Its least gain, what the layers read by rows and M, and what else was tried.
        comparison: What layers with numbers of their own gain; None if that was not measured.
    """
    plans = chosen.best.plans
    measured = {str(rows): one.describe() for rows, one in verified.items()}
    for rows, one in verified.items():
        entry = measured[str(rows)]
        entry |= speed.describe(one.loss.rows, one.loss.before, one.loss.after, one.loss.pairs)
        if rows in answers:
            entry["answers"] = dict(answers[rows])
        plan = plans.at(rows, one.active_experts)
        entry["by_layer"] = None if isinstance(plan, int) else list(plan)
    evidence = {
        "goal": {"kind": goal.kind, "value": goal.value},
        "accepted_kl": allocation.accepted if goal.kind != "speedup" else None,
        "by_batch_size": measured,
        "min_gains": chosen.describe(),
        "ceilings": speed.about(),
        "per_layer": None if comparison is None else comparison.describe(),
        "simulated_rows": [B for B, _ in allocation.points if B > 1 and B not in verified],
        **about,
    }
    by_layer = plans.points(allocation.points)
    layers = {index: {"active_experts": points} for index, points in by_layer.items()}
    return Tier(name, allocation.points, layers=layers, min_gain=chosen.best.min_gain, evidence=evidence)
