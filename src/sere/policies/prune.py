"""Prune: the router chooses among a fixed set of experts, as if the others did not exist.

Source: docs/method.md section 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sere.policies.base import LayerShape
from sere.policies.baseline import LayerBatch
from sere.policies.fixed_set import FixedSetBaseline, most_used_set
from sere.policies.gates import gates_from_scores
from sere.policies.refill import refill
from sere.reroute import Routing


@dataclass(frozen=True)
class Prune(FixedSetBaseline):
    """Let the router choose again inside a fixed set of experts: the most used ones of calibration.

    A table without a sample of the routing has the set of ``pool``. Each row takes its best K of the set, and
    its weights are renormalized to their old sum.

    Attributes:
        size: Experts of the set per layer, at least 1.
        table: The similarity table.

    Raises:
        ConfigError: ``size`` is not an integer of at least 1.
    """

    name: ClassVar[str] = "prune"
    source: ClassVar[str] = "plain expert pruning"
    needs_scores: ClassVar[bool] = True
    example: ClassVar[str] = "size=32"

    def prepare(self, layer: LayerShape) -> Mapping[str, Tensor]:
        """Return the experts of the set, ``[E]`` bool."""
        return {"inside": most_used_set(self.similarity_of(layer), self.routing, layer.index, self.size)}

    def choose(self, batch: LayerBatch) -> Routing:
        """Choose again inside the set."""
        return refill(batch, gates_from_scores(batch, self.name), batch.prepared["inside"])
