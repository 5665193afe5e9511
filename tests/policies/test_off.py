"""The baseline: nothing changes, and everything is counted."""

from __future__ import annotations

import torch

from sere.policies import Off
from tests.support.policies import route_worked, top_slots


def test_off_returns_the_routers_choice() -> None:
    """Ids and weights are bitwise those of the router."""
    ids, weights = top_slots()
    result, seen = route_worked(Off())
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)
    assert seen["distinct_before"] == seen["distinct_after"] == 6
    assert seen["slots_rerouted"] == 0
