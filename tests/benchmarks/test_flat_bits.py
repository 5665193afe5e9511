"""The benchmark that compares the bits of pairs with those of all slots."""

from __future__ import annotations

import pytest
import torch

import flat_bits

pytestmark = pytest.mark.checkout


def test_rows_of_equal_bits_are_counted() -> None:
    """Products of one row at a time: only an expert that is twice in a row makes a difference."""
    with torch.no_grad():
        kernel = flat_bits.of_transformers("batched_mm")(torch.float32)
        found = flat_bits.compare(kernel, torch.float32, None)
    every = flat_bits.T * flat_bits.SEEDS
    assert found["slots of weight 0"] == found["one slot with a weight"] == (every, every, 0.0)
    equal, rows, largest = found["each expert twice"]
    assert equal < rows == every
    assert 0 < largest < 8


def test_kinds_of_rows() -> None:
    """Half of the slots without weight, all but one, or each expert in two slots; else experts differ."""
    (_, ids, some), (_, same, one), (_, twice, weights) = flat_bits.kinds(0)
    assert (some != 0).sum(1).tolist() == [flat_bits.K // 2] * flat_bits.T
    assert (one != 0).sum(1).tolist() == [1] * flat_bits.T
    assert torch.equal(ids, same)
    assert all(len(row.unique()) == flat_bits.K for row in ids)
    assert all(len(row.unique()) == flat_bits.K // 2 for row in twice)
    assert (weights > 0).all()
