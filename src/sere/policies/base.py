"""What a routing rule is: ids and weights of one layer and step in, ids and weights out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sere.reroute import COUNTERS, Routing
from sere.reroute.slots import has_weight, members


class Policy(ABC):
    """A rule that changes which experts the rows of a decode step use.

    Rows with a negative budget, and rows from ``num_tokens`` on, are padding: they neither vote nor count.
    Rows with a budget of K or more are protected: they keep their experts, which others may use.

    Attributes:
        name: What settings and records call it.
        needs_scores: Whether ``route`` must be given the router's scores of all experts.
    """

    name: ClassVar[str]
    needs_scores: ClassVar[bool] = False

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-ready, for records."""

    @abstractmethod
    def route(
        self,
        layer: int,
        topk_ids: Tensor,
        topk_weights: Tensor,
        *,
        row_budgets: Tensor | Sequence[int] | None = None,
        num_tokens: Tensor | int | None = None,
        scores: Tensor | None = None,
        counters: Tensor | None = None,
    ) -> Routing:
        """Route one step of one layer.

        Args:
            layer: Index of the decoder layer.
            topk_ids: ``[T, K]``, int32 or int64. Not modified.
            topk_weights: ``[T, K]``, floating point. Not modified.
            row_budgets: ``[T]``, integers of any size, or None.
            num_tokens: N, or None for T.
            scores: ``[T, E]``, the router's scores, higher is better; given if ``needs_scores``. An expert
                whose score is -∞ or NaN is not wanted.
            counters: int64, one entry per name in ``sere.reroute.COUNTERS``, incremented in place, or None.

        Returns:
            New ids and weights; same shapes, dtypes and device.
        """


def count(
    counters: Tensor | None,
    before: Tensor,
    after: Tensor,
    weights: Tensor,
    new_weights: Tensor,
    *,
    real: Tensor,
    E: int,
) -> None:
    """Add one step to the counters of a policy that does not count by itself.

    Args:
        counters: int64, one entry per name in ``COUNTERS``; None counts nothing.
        before: Ids that came, ``[T, K]``.
        after: Ids that go, ``[T, K]``.
        weights: Weights that came, ``[T, K]``; slots of weight 0 or NaN are no slots.
        new_weights: Weights that go, ``[T, K]``; slots of weight 0 read no expert, those of NaN do not count.
        real: ``[T]``, bool.
        E: Number of experts.
    """
    if counters is None:
        return
    slots = (before >= 0) & (before < E) & has_weight(weights) & real[:, None]
    used = (after >= 0) & (after < E) & has_weight(new_weights) & real[:, None]
    sums = {
        "steps": real.any(),
        "rows": real.sum(),
        "distinct_before": members(before, slots, E).sum(),
        "distinct_after": members(after, used, E).sum(),
        "slots": slots.sum(),
        "slots_rerouted": (slots & (after != before)).sum(),
        "critical": torch.zeros((), dtype=torch.int64, device=before.device),
    }
    counters.add_(torch.stack([sums[name].long() for name in COUNTERS]))
