"""No re-routing: the baseline, with the same counting as the others."""

from __future__ import annotations

from typing import Any, ClassVar

from sere.policies.rows import Choice, Rival
from sere.reroute import Routing


class Off(Rival):
    """Leave every row as the router chose, padding rows included, and count."""

    name: ClassVar[str] = "off"

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return {"policy": self.name}

    def choose(self, step: Choice) -> Routing:
        """Return what came."""
        return Routing(step.ids, step.weights)
