"""Top-k reduction: drop a row's lighter slots. The plainest way to run fewer experts.

Source: docs/method.md section 6; the baseline "top-k" of SERE (ICLR 2026, arXiv 2602.07616).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from sere.policies.rows import Choice, SlotRival, finish, heaviest, renormalized
from sere.reroute import Routing


class TopK(SlotRival):
    """Keep the ``select_top_k`` heaviest slots of each row; the others get the row's heaviest id, weight 0.

    The kept weights are renormalized to the row's old sum.

    Args:
        select_top_k: Slots per row that are kept, at least 1.

    Raises:
        ConfigError: ``select_top_k`` is no integer of at least 1.
    """

    name: ClassVar[str] = "topk"

    def choose(self, step: Choice) -> Routing:
        """Keep the heaviest slots, free the others."""
        rows = step.rows
        kept = heaviest(step, self.select_top_k)
        slot = torch.where(rows.valid, rows.ranks, rows.ranks.shape[1]).argmin(dim=1, keepdim=True)
        new_ids = torch.where(kept, step.ids, step.ids.gather(1, slot)).long()
        new_weights = renormalized(torch.where(kept, step.weights.double(), 0.0), step.weights, rows.valid)
        return finish(step, new_ids, new_weights)
