"""How often each expert of a layer was chosen and ran: one more tensor a layer, for who asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sere.reroute.batch import Routing, TokenBatch
from sere.reroute.slots import has_weight, real_rows
from sere.reroute.stats import COUNTERS

_STEPS = COUNTERS.index("steps")


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """How often each expert of one layer was chosen and ran since the start or the last reset.

    Exactly those runs of the layer count that its other statistics count (``LayerStats.steps``): some expert
    was primary in them, whether a slot changed or not. So steps that are left alone do not count: those of
    prompts only, for example, or of so few rows that all their experts fit into M.

    In such a run every real row counts, also one that keeps its experts, such as a row of a prompt beside
    rows that decode. Padding and finished rows do not. Of a row, those slots count that hold the id of an
    expert and a weight that is neither 0 nor NaN.

    Attributes:
        index: Decoder-layer index.
        name: Module name of the experts.
        chosen: For each expert, the slots in which the router chose it; their sum is the layer's ``slots``.
        ran: For each expert, the slots that ran on it after re-routing and carried weight. A slot that was
            merged into another one, or given up for too small a gain, ran on none.
    """

    index: int
    name: str
    chosen: tuple[int, ...]
    ran: tuple[int, ...]

    @classmethod
    def read(cls, index: int, name: str, counts: Tensor) -> ExpertCounts:
        """Read the counts of a layer; the host waits for the device.

        Args:
            index: Decoder-layer index.
            name: Module name of the experts.
            counts: ``[2, E]``, int64, as `new_counts` makes it.
        """
        chosen, ran = counts.tolist()
        return cls(index, name, tuple(chosen), tuple(ran))


def new_counts(num_experts: int, device: torch.device) -> Tensor:
    """Return counts of 0, ``[2, E]``, int64: how often each expert was chosen, then how often it ran.

    Args:
        num_experts: E.
        device: Where the layer's steps run.
    """
    # A tensor made in inference mode could not be changed outside it.
    with torch.inference_mode(False):
        return torch.zeros(2, num_experts, dtype=torch.int64, device=device)


def route_counted(
    router: Callable[[TokenBatch], Routing], batch: TokenBatch, counters: Tensor, counts: Tensor
) -> Routing:
    """Route one step, and add its slots to the counts of the experts if the router counts the step.

    Tensor operations of fixed shapes, in place and without host synchronization, so that they can be compiled
    and captured.

    Args:
        router: The router of a layer.
        batch: The step.
        counters: The router's counters, one entry per name in ``COUNTERS``.
        counts: ``[2, E]``, int64, as `new_counts` makes it; incremented in place.

    Returns:
        What the router returns.
    """
    before = counters[_STEPS].clone()
    routing = router(batch)
    _add(counts, batch, routing, counters[_STEPS] > before)
    return routing


def _add(counts: Tensor, batch: TokenBatch, routing: Routing, counted: Tensor) -> None:
    """Add the slots of a step that is ``counted``, ``[]`` bool."""
    ids = torch.stack([batch.topk_ids, routing.ids])
    index = ids.clamp(0, counts.shape[1] - 1)
    inside = index == ids
    real = real_rows(batch.topk_ids, batch.row_budgets, batch.num_tokens) & counted
    chosen = inside[0] & has_weight(batch.topk_weights) & real[:, None]
    ran = chosen & inside[1] & (routing.weights != 0)
    # A slot that does not count adds 0, to whichever expert.
    counts.scatter_add_(1, index.flatten(1).long(), torch.stack([chosen, ran]).flatten(1).long())
