"""Projection similarity on hand-made experts whose answer is known."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sere.similarity import LayerSimilarity, make_accumulator


def project(Y: Tensor, ids: Tensor, weights: Tensor) -> LayerSimilarity:
    """The accumulator's result for all tokens at once."""
    accumulator = make_accumulator("projection", len(Y))
    accumulator.update(Y, ids, weights)
    return accumulator.finalize()


def test_a_multiple_is_explained_fully_and_its_factor_is_the_scale() -> None:
    """Where Y_1 = 4 Y_0 and Y_2 = -Y_0: similarity 1 with α = 1/4; with α = -1 a 0 that is known."""
    base = torch.randn(6, 5)
    Y = torch.stack([base, 4 * base, -base])
    result = project(Y, torch.tensor([[0, 1, 2]] * 6), torch.ones(6, 3))
    assert result.scale is not None
    torch.testing.assert_close(result.similarity[0], torch.tensor([1.0, 1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.scale[0], torch.tensor([1.0, 0.25, -1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.scale[1], torch.tensor([4.0, 1.0, -4.0]), atol=1e-5, rtol=0)


def test_only_tokens_routed_to_the_expert_count() -> None:
    """Experts 0 and 1 agree where 0 is used and differ where 1 is used: the result is directed."""
    Y = torch.randn(2, 8, 5)
    Y[1, :4] = Y[0, :4]
    result = project(Y, torch.tensor([[0]] * 4 + [[1]] * 4), torch.rand(8, 1) + 0.1)
    assert result.similarity[0, 1] > 0.999999
    assert result.similarity[1, 0] < 0.5


def test_of_an_expert_never_routed_nothing_is_known() -> None:
    """Without a token there is no evidence: its row is NaN, its scale 1. It may replace others."""
    result = project(torch.rand(3, 4, 5), torch.tensor([[0, 2]] * 4), torch.ones(4, 2))
    assert result.scale is not None
    assert result.similarity[1].isnan().tolist() == [True, False, True]
    assert result.scale[1].tolist() == [1, 1, 1]
    assert result.similarity[0, 1] > 0
    assert result.unknown == (1,)


def test_routed_only_with_weight_0_is_never_routed() -> None:
    """A slot of weight 0 is no token."""
    result = project(torch.rand(2, 4, 5), torch.tensor([[0, 1]] * 4), torch.tensor([[0.5, 0.0]] * 4))
    assert result.unknown == (1,)


def test_of_an_expert_that_gives_nothing_where_it_is_used_nothing_is_known() -> None:
    """0/0: every other explains all of nothing."""
    Y = torch.rand(3, 4, 5)
    Y[0, :2] = 0
    result = project(Y, torch.tensor([[0], [0], [1], [2]]), torch.ones(4, 1))
    assert result.scale is not None
    assert result.unknown == (0,)
    assert result.scale[0].tolist() == [1, 1, 1]


def test_sentinels_and_weights_of_zero_do_not_count() -> None:
    """Slots with an id outside [0, E) or a weight of 0 change nothing, to the bit."""
    Y, ids, weights = torch.randn(3, 4, 5), torch.tensor([[0], [1], [2], [0]]), torch.rand(4, 1)
    plain = project(Y, ids, weights)
    more = torch.tensor([[-1, 1], [3, 0], [1000, 0], [-7, 2]])
    padded = project(Y, torch.cat([ids, more], 1), torch.cat([weights, torch.tensor([[0.5, 0.0]] * 4)], 1))
    assert torch.equal(padded.similarity, plain.similarity)
    assert plain.scale is not None
    assert padded.scale is not None
    assert torch.equal(padded.scale, plain.scale)


def test_an_expert_that_gives_nothing_cannot_replace_another() -> None:
    """For a zero expert no α is the best: not known, at ρ = 0 no substitute, scale 1."""
    Y = torch.rand(3, 4, 5)
    Y[1] = 0
    result = project(Y, torch.tensor([[0, 2]] * 4), torch.ones(4, 2))
    assert result.scale is not None
    assert result.similarity.isnan().tolist() == [
        [False, True, False],
        [True, False, True],
        [False, True, False],
    ]
    assert result.scale[0, 1] == 1
    assert result.unknown == (1,)


def test_a_factor_beyond_float32_makes_a_pair_unknown() -> None:
    """Outputs of 1e-30 explain ones of 1e30 with a factor that no table can hold."""
    base = torch.rand(4, 5, dtype=torch.float64)
    accumulator = make_accumulator("projection", 2, dtype=torch.float64)
    accumulator.update(torch.stack([1e30 * base, 1e-30 * base]), torch.tensor([[0, 1]] * 4), torch.ones(4, 2))
    result = accumulator.finalize()
    assert result.scale is not None
    assert result.similarity.isnan().tolist() == [[False, True], [False, False]]
    assert result.scale[0, 1] == 1


def test_the_work_grows_with_the_routed_slots_not_with_all_pairs() -> None:
    """An update multiplies t·K·E·H numbers, not t·E²·H."""
    E, t, H, K = 32, 10, 16, 2
    with FlopCounterMode(display=False) as counter:
        project(torch.randn(E, t, H), torch.randint(0, E, (t, K)), torch.rand(t, K))
    assert counter.get_total_flops() == 2 * t * K * E * H
