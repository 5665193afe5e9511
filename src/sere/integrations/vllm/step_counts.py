"""What the host counts of an engine's steps: which were re-routed, and why the others were skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SKIPPED = ("prompts", "protected", "few_rows", "mixed", "disabled", "unknown")
"""Why a step was skipped: the fields of `StepCounts` that count such steps."""


@dataclass(slots=True)
class StepCounts:
    """Steps of a model runner by what was done with them.

    Attributes:
        rerouted: At least one row could be re-routed.
        prompts: No request decoded.
        protected: Requests decoded, and each keeps all its experts.
        few_rows: Requests decoded that may change, in so few rows that all their experts fit into M.
        mixed: Requests decoded beside so many rows that keep their experts, those of prompts as a rule, that
            nearly every expert was needed anyway.
        disabled: Re-routing was switched off.
        unknown: It was not known which rows belong to which request: the device dropped drafted tokens, or
            images were read by a model that has experts of their own for them.
        least_budget: The smallest S that a row was re-routed with; None before the first.
        exact_rows: The most such rows of a step that counts as ``few_rows``.
        by_tier: Of the re-routed steps, those in which a decoding request asked for a tier, by its name.
    """

    rerouted: int = 0
    prompts: int = 0
    protected: int = 0
    few_rows: int = 0
    mixed: int = 0
    disabled: int = 0
    unknown: int = 0
    least_budget: int | None = None
    exact_rows: int = 0
    by_tier: dict[str, int] = field(default_factory=dict)

    def add_rerouted(self, least_budget: int, tiers: Iterable[str] = ()) -> None:
        """Count a step with rows to re-route.

        Args:
            least_budget: The smallest S of a row.
            tiers: What its decoding requests asked for.
        """
        self.rerouted += 1
        self.least_budget = min(least_budget, self.least_budget or least_budget)
        for tier in tiers:
            self.by_tier[tier] = self.by_tier.get(tier, 0) + 1

    def add_few_rows(self, rows: int) -> None:
        """Count a step whose rows that may change were too few to re-route any."""
        self.few_rows += 1
        self.exact_rows = max(rows, self.exact_rows)

    def to_mapping(self) -> dict[str, Any]:
        """Return the counts as plain numbers, which can be sent between processes."""
        return asdict(self)


def counted_together(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what several model runners counted: sums, and the smallest S of all."""
    budgets = [one["least_budget"] for one in counts if one["least_budget"] is not None]
    tiers: Counter[str] = Counter()
    for one in counts:
        tiers.update(one["by_tier"])
    apart = {"least_budget": min(budgets, default=None), "by_tier": dict(tiers)}
    return {name: sum(one[name] for one in counts) for name in counts[0] if name not in apart} | apart


def counted_since(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was counted between two mappings; the smallest S and the most rows are of all steps."""
    tiers = {name: count - then["by_tier"].get(name, 0) for name, count in now["by_tier"].items()}
    apart = {name: now[name] for name in ("least_budget", "exact_rows")} | {"by_tier": tiers}
    return {name: value - then[name] for name, value in now.items() if name not in apart} | apart
