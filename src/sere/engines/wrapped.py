"""A rule around another rule, which measurements use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sere.policies.base import LayerShape, Policy


class WrappedPolicy(Policy):
    """A rule that is bound to layers in another way; all else is the rule's.

    Args:
        policy: The rule.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.name, self.config = policy.name, policy.config  # type: ignore[misc]
        self.needs_scores = policy.needs_scores  # type: ignore[misc]
        self.changes_routing = policy.changes_routing  # type: ignore[misc]

    def describe(self) -> dict[str, Any]:
        """Return the rule's settings."""
        return self.policy.describe()

    def why_idle(self, layers: Iterable[LayerShape]) -> list[str]:
        """Return what the rule says."""
        return self.policy.why_idle(layers)

    def exact_rows(self, layer: LayerShape) -> int:
        """Return what the rule says."""
        return self.policy.exact_rows(layer)
