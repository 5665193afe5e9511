"""A layer, prepared: neighbors in order, cut at the threshold, those that are not known left out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sere.reroute.neighbors import rank_neighbors
from tests.support.batches import forget_some, similarity_matrix


@given(
    E=st.integers(1, 40),
    seed=st.integers(0, 1000),
    levels=st.sampled_from([None, 3]),
    threshold=st.sampled_from([-math.inf, -1.0, 0.0, 1 / 3, 0.9, 1.5]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_neighbors_are_the_known_similarities_in_order(
    E: int, seed: int, levels: int | None, threshold: float, share: float
) -> None:
    """Sorted by similarity (ties: the lower id) down to the threshold; what is not known is below any."""
    similarity = forget_some(similarity_matrix(E, seed, levels=levels), seed, share=share)
    order, counts = rank_neighbors(similarity, threshold)
    least = torch.tensor(threshold).item()
    for e, row in enumerate(similarity.tolist()):
        enough = [p for p in range(E) if p != e and row[p] >= least]
        expected = sorted(enough, key=lambda p, row=row: (-row[p], p))
        assert order[e, : counts[e]].tolist() == expected
        assert sorted(order[e].tolist()) == list(range(E))
        assert order[e, -1] == e


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_known_similarity_of_0_is_no_unknown_one(threshold: float) -> None:
    """At ρ = 0 a similarity of 0 is enough, as the paper has it; above it is not."""
    similarity = torch.zeros(3, 3).fill_diagonal_(1.0)
    similarity[1] = torch.tensor([math.nan, 1.0, math.nan])
    _, counts = rank_neighbors(similarity, threshold)
    assert counts.tolist() == ([2, 0, 2] if threshold == 0 else [0, 0, 0])
