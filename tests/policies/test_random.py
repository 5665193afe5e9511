"""The random control: who may take over a slot, and that draws depend on seed, layer and step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sere.policies import LayerShape, RandomReroute
from sere.reroute import TokenBatch, reroute
from tests.support.policies import CPU, route_worked, router, top_slots


def test_secondary_slots_go_to_primary_experts_only() -> None:
    """S=1: primaries are {0, 3}; slots that hold one stay, all others get one; weights are unchanged."""
    ids, weights = top_slots()
    result, _ = route_worked(RandomReroute(1, 0))
    primary = (ids == 0) | (ids == 3)
    assert torch.equal(result.ids[primary], ids[primary])
    assert set(result.ids[~primary].tolist()) <= {0, 3}
    assert torch.equal(result.weights, weights)


@pytest.mark.parametrize("active_experts", [0, 2, 3, 4, 9])
def test_the_experts_that_stay_are_those_of_sere_at_equal_settings(active_experts: int) -> None:
    """Filled up, too, the active set is SERE's at threshold 0: only who takes over differs."""
    ids, weights = top_slots()
    result, _ = route_worked(RandomReroute(1, active_experts=active_experts))
    sere = reroute(ids, weights, torch.ones(6, 6), select_top_k=1, active_experts=active_experts)
    active = set(result.ids.flatten().tolist())
    assert active == set(sere.ids.flatten().tolist())
    assert len(active) == max(2, min(active_experts, 6))


def test_draws_are_uniform_and_those_of_seed_layer_and_step() -> None:
    """Equal seeds agree step by step; another seed or layer does not; each primary is as likely."""
    ids = torch.arange(8).repeat(64, 1)
    weights = torch.ones(64, 8)
    weights[:, :4] = 2.0

    def steps(seed: int, count: int = 20, layer: int = 0) -> list[Tensor]:
        bound = RandomReroute(4, 0, seed=seed).bind(LayerShape(layer, 8, 8), CPU)
        return [bound(TokenBatch(ids, weights)).ids for _ in range(count)]

    first, again = steps(0), steps(0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (first[1], steps(1)[0], steps(0, layer=1)[0]):
        assert not torch.equal(first[0], other)
    drawn = torch.stack(first)[:, :, 4:].flatten().bincount(minlength=8)
    assert drawn[4:].tolist() == [0, 0, 0, 0]
    # 5120 draws, expectation 1280 each, standard deviation 31: five of them.
    assert (drawn[:4] - 1280).abs().max() < 155


def test_draws_are_the_same_in_every_release() -> None:
    """Measurements name a seed: the first two steps of seed 3 and layer 0, as they have always been."""
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]] * 2)
    weights = torch.tensor([[4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0]] * 2)
    bound = router(RandomReroute(3, 0, seed=3), 8, 8)
    drawn = [bound(TokenBatch(ids, weights)).ids[:, 3:].tolist() for _ in range(2)]
    assert drawn == [[[0, 1, 2, 1, 1], [1, 2, 1, 2, 1]], [[1, 0, 2, 2, 1], [2, 1, 1, 0, 2]]]


@pytest.mark.parametrize("padding", [False, True], ids=["all real", "with padding"])
def test_nothing_changes_without_a_primary_expert(padding: bool) -> None:
    """Budgets of 0 leave P empty: the router's own bits, padding rows too, as SERE does (steps 3 and 8)."""
    ids, weights = top_slots()
    budgets = torch.tensor([0, 0, -1 if padding else 0])
    sere = reroute(ids, weights, torch.ones(6, 6), active_experts=0, row_budgets=budgets)
    result, _ = route_worked(RandomReroute(1, 0), row_budgets=budgets)
    assert torch.equal(sere.ids, ids)
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)


def test_keeping_all_slots_changes_nothing() -> None:
    """S = K is bitwise identity."""
    ids, weights = top_slots()
    result, _ = route_worked(RandomReroute(3))
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)
