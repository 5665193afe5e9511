"""Where matrix products lose digits: experts that are nearly equal, far away, huge, tiny or zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sere.similarity import METRICS, accumulator, frobenius, make_accumulator, weights_similarity


def result(metric: str, Y: Tensor, **parameters: Any) -> Tensor:
    """The accumulator's similarity, in float64."""
    accumulator = make_accumulator(metric, len(Y), **parameters)
    accumulator.update(Y)
    return accumulator.finalize().similarity.double()


def defined(metric: str, Y: Tensor, **parameters: Any) -> Tensor:
    """The similarity by the metric's definition."""
    found = METRICS[metric]
    similarity = found.definition(Y, **found.resolve(parameters))
    assert isinstance(similarity, Tensor)
    return similarity


def test_near_identical_experts_keep_their_order() -> None:
    """Distances of 1e-3 and 2e-3 of the farthest pair are told apart: the pairs are computed again."""
    base, far, noise = torch.randn(1, 64, 32), torch.randn(1, 64, 32), torch.randn(3, 64, 32)
    sizes = torch.tensor([0.0, 1e-3, 3e-3])[:, None, None]
    Y = torch.cat([base + sizes * noise, far, far + 1e-4 * noise[:1]])
    similarity = result("frobenius", Y)
    torch.testing.assert_close(similarity, defined("frobenius", Y), atol=1e-6, rtol=0)


def test_a_chain_of_close_experts_is_computed_by_pairs() -> None:
    """Where every expert is close to the next, no group has a mean of its own; pairs serve."""
    steps = torch.cat([torch.tensor([0.0]), torch.logspace(-3, 0, 7)]).cumsum(0)
    Y = torch.randn(1, 64, 32) * steps[:, None, None] + 1e-4 * torch.randn(8, 64, 32)
    torch.testing.assert_close(result("frobenius", Y), defined("frobenius", Y), atol=5e-6, rtol=0)


def test_a_large_common_part_costs_no_accuracy() -> None:
    """What all experts have in common cancels before squares are taken, not after."""
    Y = 1000 * torch.randn(1, 64, 32) + torch.randn(6, 64, 32)
    torch.testing.assert_close(result("frobenius", Y), defined("frobenius", Y), atol=5e-6, rtol=0)


@pytest.mark.parametrize("kernel", ["linear", "rbf", "polynomial"])
def test_a_constant_part_of_the_tokens_costs_cka_no_accuracy(kernel: str) -> None:
    """Tokens around a far point have the kernels of their differences, not of rounding."""
    Y = 100 * torch.randn(4, 1, 32) + torch.randn(1, 64, 32) + 0.5 * torch.randn(4, 64, 32)
    expected = defined("cka", Y, kernel=kernel, window=32)
    torch.testing.assert_close(result("cka", Y, kernel=kernel, window=32), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("copies", [1, 4], ids=["all different", "four copies of each"])
def test_a_common_part_and_copies_need_no_loop_over_pairs(
    copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Centering, over all or within a group of copies, keeps the work in matrix products."""
    pairs: list[object] = []
    monkeypatch.setattr(frobenius, "_replace_pairs", lambda *arguments: pairs.append(arguments))
    Y = 1000 * torch.randn(1, 64, 32) + torch.randn(6, 64, 32).repeat(copies, 1, 1)
    Y += 1e-3 * torch.randn_like(Y)
    torch.testing.assert_close(result("frobenius", Y), defined("frobenius", Y), atol=5e-6, rtol=0)
    assert not pairs


@pytest.mark.parametrize("E", [1, 64, 65, 150])
def test_the_product_of_strips_is_the_product(E: int) -> None:
    """Strips of rows, the last one narrower, give every pair, on both sides of the diagonal."""
    rows = torch.randn(E, 30, dtype=torch.float64)
    torch.testing.assert_close(accumulator.gram(rows), rows @ rows.T)


def test_identical_experts_are_all_alike() -> None:
    """With no distance between any two experts, every similarity is 1 rather than 0 / 0."""
    Y = torch.randn(1, 20, 8).expand(4, 20, 8)
    assert torch.equal(result("frobenius", Y), torch.ones(4, 4, dtype=torch.float64))


def test_a_zero_row_has_cosine_zero() -> None:
    """A token on which an expert gives nothing counts as neither alike nor opposite."""
    Y = torch.ones(2, 4, 3)
    Y[0, :2] = 0
    assert result("cosine", Y)[0, 1].item() == 0.75
    Y[1, :2] = 0
    assert result("cosine", Y)[0, 1].item() == 0.75


@pytest.mark.parametrize("size", [1e-30, 1e30], ids=["tiny", "huge"])
def test_cosine_survives_rows_whose_squares_leave_float32(size: float) -> None:
    """Rows of 1e-30 or 1e30 have directions too."""
    Y = torch.randn(3, 10, 8)
    torch.testing.assert_close(result("cosine", Y * size), defined("cosine", Y), atol=1e-6, rtol=0)


def test_a_silent_expert_has_no_known_cosine() -> None:
    """An expert that gives nothing on any token points nowhere: NaN, not half alike."""
    Y = torch.rand(3, 4, 3)
    Y[1] = 0
    for similarity in (result("cosine", Y), defined("cosine", Y)):
        assert similarity.isnan().tolist() == [
            [False, True, False],
            [True, False, True],
            [False, True, False],
        ]
        assert similarity[0, 2] > 0.5


@pytest.mark.parametrize("kernel", ["linear", "rbf", "polynomial"])
@pytest.mark.parametrize("tokens", [16, 21], ids=["whole windows", "a rest of 5"])
def test_of_constant_outputs_cka_knows_nothing(kernel: str, tokens: int) -> None:
    """An expert that answers a window's tokens alike has no centered kernel, whatever rounding leaves."""
    Y = torch.randn(3, tokens, 8)
    for window in range(0, tokens, 8):
        Y[1, window : window + 8] = torch.rand(8)
    similarity = result("cka", Y, kernel=kernel, window=8)
    assert similarity.isnan().tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    assert similarity[0, 2] > 0
    Y[1, 0] += 1
    assert not result("cka", Y, kernel=kernel, window=8).isnan().any()


def test_of_an_all_zero_expert_the_weights_say_nothing() -> None:
    """A pruned expert has no direction; negative cosines are a 0 that is known."""
    flat = torch.tensor([[1.0, 1.0], [0.0, 0.0], [-1.0, -1.0]])
    layer = weights_similarity(flat)
    assert layer.unknown == (1,)
    assert layer.similarity[0, 2] == 0
    assert torch.equal(layer.similarity.isnan(), defined("weights", flat).isnan())


def test_long_calibration_does_not_drift() -> None:
    """Three thousand updates of the same tokens give what one gives: sums are float64."""
    Y = torch.randn(3, 2, 4)
    once, often = make_accumulator("cosine", 3), make_accumulator("cosine", 3)
    once.update(Y)
    for _ in range(3_000):
        often.update(Y)
    torch.testing.assert_close(often.finalize().similarity, once.finalize().similarity, atol=1e-7, rtol=0)
