"""What the host counts of an engine's steps: which were re-routed, and why the others were skipped."""

from __future__ import annotations

from dataclasses import asdict, dataclass

SKIPPED = ("prompts", "protected", "disabled", "unknown")
"""Why a step was skipped: the fields of `StepCounts` that count such steps."""


@dataclass(slots=True)
class StepCounts:
    """Steps of a model runner by what was done with them.

    Attributes:
        rerouted: At least one row could be re-routed.
        prompts: No request decoded.
        protected: Requests decoded, and each keeps all its experts.
        disabled: Re-routing was switched off.
        unknown: The device dropped drafted tokens, so it was not known which rows belong to which request.
        least_budget: The smallest S that a row was re-routed with; None before the first.
    """

    rerouted: int = 0
    prompts: int = 0
    protected: int = 0
    disabled: int = 0
    unknown: int = 0
    least_budget: int | None = None

    def add_rerouted(self, least_budget: int) -> None:
        """Count a step with rows to re-route, whose smallest S is given."""
        self.rerouted += 1
        self.least_budget = min(least_budget, self.least_budget or least_budget)

    def to_mapping(self) -> dict[str, int | None]:
        """Return the counts as plain numbers, which can be sent between processes."""
        return asdict(self)
