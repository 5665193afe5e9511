"""Tiers with their evidence: what a table keeps of a tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sere.table import Tier
from sere.tune.allocate import Allocation
from sere.tune.choose import Comparison
from sere.tune.plan import Goal
from sere.tune.plans import Plans
from sere.tune.speed import StepBytes
from sere.tune.verify import Verified


def make_tier(
    name: str,
    goal: Goal,
    allocation: Allocation,
    verified: Mapping[int, Verified],
    size: StepBytes,
    about: Mapping[str, Any],
    answers: Mapping[int, Mapping[str, Any]],
    plans: Plans,
    comparison: Comparison | None,
) -> Tier:
    """Return a tier with what was measured of it.

    Args:
        name: The tier's name.
        goal: What was wanted.
        allocation: M by rows.
        verified: What was measured on held-out prompts, by rows.
        size: The model's weights.
        about: What all tiers of a tuning say: texts, versions, time; JSON-ready.
        answers: What it lost in right answers, by rows; empty if none were asked.
        plans: What the layers read, by rows and M.
        comparison: What layers with numbers of their own gain; None if that was not measured.
    """
    measured = {str(rows): one.describe() for rows, one in verified.items()}
    for rows, one in verified.items():
        entry = measured[str(rows)]
        entry["bytes_ratio"] = round(size.speedup(one.loss.before, one.loss.after), 4)
        if rows in answers:
            entry["answers"] = dict(answers[rows])
        plan = plans.at(rows, one.active_experts)
        entry["by_layer"] = None if isinstance(plan, int) else list(plan)
    evidence = {
        "goal": {"kind": goal.kind, "value": goal.value},
        "accepted_kl": allocation.accepted if goal.kind != "speedup" else None,
        "by_batch_size": measured,
        "per_layer": None if comparison is None else comparison.describe(),
        "simulated_rows": [B for B, _ in allocation.points if B > 1 and B not in verified],
        **about,
    }
    by_layer = plans.points(allocation.points)
    layers = {index: {"active_experts": points} for index, points in by_layer.items()}
    return Tier(name, allocation.points, layers=layers, evidence=evidence)
