"""Which pairs of a row and an expert carry weight, and how their outputs are added up."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from sere.errors import why_missing
from sere.flatten import find_pairs, pairs, skip_empty_slots, sum_by_row

EMPTY = 9


def step(
    T: int, K: int, *, dtype: torch.dtype = torch.float32, ids: torch.dtype = torch.int64
) -> list[Tensor]:
    """A step of 4 experts in which slots are empty and rows have an expert twice."""
    generator = torch.Generator().manual_seed(T * K)
    weights = torch.rand(T, K, generator=generator)
    weights[torch.rand(T, K, generator=generator) < 0.4] = 0
    return [torch.randint(4, (T, K), generator=generator).to(ids), weights.to(dtype)]


def plainly(ids: Tensor, weights: Tensor) -> dict[tuple[int, int], float]:
    """Sum the weights of each row's experts, in float32, in the order of the slots."""
    found: dict[tuple[int, int], Tensor] = {}
    for t, k in (weights != 0).nonzero().tolist():
        key = t, int(ids[t, k])
        found[key] = found[key] + weights[t, k].float() if key in found else weights[t, k].float()
    return {key: float(weight.to(weights.dtype)) for key, weight in found.items()}


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("T", "K"), [(1, 1), (1, 8), (7, 4), (64, 8)])
def test_pairs_are_the_distinct_experts_with_weight(
    T: int, K: int, dtype: torch.dtype, ids_dtype: torch.dtype
) -> None:
    """Row by row, in the order of the slots; weights of one expert are summed in float32."""
    ids, weights = step(T, K, dtype=dtype, ids=ids_dtype)
    found = find_pairs(ids, weights)
    keys = zip(found.rows.tolist(), found.ids[:, 0].tolist(), strict=True)
    assert (found.ids.dtype, found.weights.dtype, found.ids.shape[1:]) == (ids_dtype, dtype, (1,))
    if dtype is torch.float64:
        assert list(keys) == list(plainly(ids, weights))
        return
    assert list(zip(keys, found.weights[:, 0].tolist(), strict=True)) == list(plainly(ids, weights).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_slots_that_stay_are_the_pairs(dtype: torch.dtype) -> None:
    """Where an id is skipped, the same pairs stay in their slots, and all else has that id and weight 0."""
    ids, weights = step(9, 6, dtype=dtype)
    new_ids, new_weights, n = skip_empty_slots(ids, weights, EMPTY)
    stay = new_ids != EMPTY
    expected = find_pairs(ids, weights)
    assert n == int(stay.sum()) == len(expected.rows)
    assert torch.equal(new_ids[stay], expected.ids[:, 0])
    assert torch.equal(new_weights[stay], expected.weights[:, 0])
    assert not new_weights[~stay].any()


def test_nan_is_a_weight() -> None:
    """A row whose weight is NaN computes the slot, so that its output stays NaN; -0 is no weight."""
    weights = torch.tensor([[float("nan"), 0.5], [-0.0, 0.5]])
    found = find_pairs(torch.tensor([[1, 2], [1, 2]]), weights)
    assert found.rows.tolist() == [0, 0, 1]
    assert found.weights[0].isnan()


def test_outputs_are_summed_in_float32_in_the_order_of_the_pairs() -> None:
    """Whatever the dtype, each sum is rounded once; a row without a pair is 0."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(40, 33, generator=generator).bfloat16()
    rows = torch.randint(1, 6, (40,), generator=generator).sort().values
    expected = torch.zeros(7, 33)
    for row, output in zip(rows.tolist(), outputs, strict=True):
        expected[row] += output.float()
    assert torch.equal(sum_by_row(outputs, rows, 7), expected.bfloat16())


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named, with what installs it."""
    monkeypatch.setitem(sys.modules, "numba", None)
    why_missing.cache_clear()
    assert str(pairs.why_not()).startswith("the package numba is not installed; in a clone")
    why_missing.cache_clear()
    monkeypatch.undo()
    assert pairs.why_not() is None
