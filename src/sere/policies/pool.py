"""Pool: the same few experts in every step, and each other expert always goes to the one most like it.

Source: ExFold, arXiv 2608.24938; docs/method.md section 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sere.policies.base import LayerShape
from sere.policies.baseline import LayerBatch
from sere.policies.fixed_set import FixedSetBaseline, pool_of
from sere.policies.refill import finish
from sere.reroute import Routing


@dataclass(frozen=True)
class Pool(FixedSetBaseline):
    """Send every expert outside a fixed pool to the most similar one inside, with the table's factor.

    The pool is chosen greedily for the least expected loss. An expert with no known similarity to any of the
    pool stays. Where the table has no factors, weights are unchanged.

    Attributes:
        size: Experts of the pool per layer, at least 1.
        table: The similarity table.

    Raises:
        ConfigError: ``size`` is not an integer of at least 1.
    """

    name: ClassVar[str] = "pool"
    source: ClassVar[str] = "arXiv 2608.24938"
    example: ClassVar[str] = "size=32"

    def prepare(self, layer: LayerShape) -> Mapping[str, Tensor]:
        """Return where each expert of a layer goes, ``[E]``, and its factor, ``[E]`` float64."""
        similarity = self.similarity_of(layer)
        pool = pool_of(similarity, self.routing, layer.index, self.size)
        known = similarity.similarity.nan_to_num(nan=-1.0).masked_fill(~pool, -1.0)
        best, order = known.sort(dim=1, descending=True, stable=True)
        own = torch.arange(layer.num_experts, device=pool.device)
        target = torch.where(pool | (best[:, 0] < 0), own, order[:, 0])
        factor = torch.ones(layer.num_experts, dtype=torch.float64, device=pool.device)
        if similarity.scale is not None:
            factor = torch.where(target == own, factor, similarity.scale[own, target].double())
        return {"target": target, "factor": factor}

    def choose(self, batch: LayerBatch) -> Routing:
        """Look up where each slot goes."""
        safe = torch.where(batch.inside, batch.ids.long(), 0)
        target, factor = batch.prepared["target"], batch.prepared["factor"]
        return finish(batch, target[safe], batch.weights.double() * factor[safe])
