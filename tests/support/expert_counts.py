"""How often each expert was chosen and ran, in plain loops over what a router got and gave."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sere.reroute import Routing, TokenBatch
from sere.reroute.constants import LAYER_BUDGET

Counts = list[list[int]]


def nothing(E: int) -> Counts:
    """Return the counts of no step: chosen, then ran."""
    return [[0] * E, [0] * E]


def add_step(found: Counts, batch: TokenBatch, routing: Routing) -> None:
    """Add the slots of one step to the counts, loop by loop."""
    E = len(found[0])
    ids, weights, new_ids, new_weights = (
        tensor.tolist() for tensor in (batch.topk_ids, batch.topk_weights, routing.ids, routing.weights)
    )
    budgets = [LAYER_BUDGET] * len(ids) if batch.row_budgets is None else batch.row_budgets.tolist()
    rows = len(ids) if batch.num_tokens is None else int(batch.num_tokens)
    for t in range(min(rows, len(ids))):
        if budgets[t] < 0 and budgets[t] != LAYER_BUDGET:
            continue
        for k, expert in enumerate(ids[t]):
            if not 0 <= expert < E or weights[t][k] == 0 or math.isnan(weights[t][k]):
                continue
            found[0][expert] += 1
            if new_weights[t][k] != 0:
                found[1][new_ids[t][k]] += 1


class RecordedRouter:
    """A layer's router that counts what it gets and gives in plain loops beside.

    Args:
        router: The router in whose place it is put.
        num_experts: E.

    Attributes:
        found: The counts: chosen, then ran.
    """

    def __init__(self, router: Any, num_experts: int) -> None:
        self._router: Callable[[TokenBatch], Routing] = router
        self.counters: Tensor = router.counters
        self.found = nothing(num_experts)

    def __call__(self, batch: TokenBatch) -> Routing:
        """Route one step."""
        routing = self._router(batch)
        add_step(self.found, batch, routing)
        return routing
