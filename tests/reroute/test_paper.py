"""``RerouteConfig.paper`` is the published method to the bit, on every backend (SERE, arXiv 2602.07616)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from sere.config import RerouteConfig
from sere.policies import LayerShape, Sere
from sere.reroute import Routing, TokenBatch
from sere.similarity.layer import LayerSimilarity
from tests.support.batches import Case, batch, bits, device_of, name_of, similarity_matrix
from tests.support.calls import cases
from tests.support.properties import backends, few, without

pytestmark = pytest.mark.usefixtures("shim_backend")


def published(ids: Tensor, similarity: Tensor, S: int, threshold: float) -> Tensor:
    """The paper's algorithm, for slots in the order of their weights and similarities that are known.

    The S first experts of every row are primary. Each other expert of the batch becomes the primary one that
    is most similar to it, or stays, if that similarity is below the threshold.
    """
    primary = ids[:, :S].unique()
    mapping = torch.arange(len(similarity))
    for expert in ids[:, S:].unique().tolist():
        if expert in primary:
            continue
        best, where = similarity[expert, primary].max(dim=0)
        # In float32, like the similarities.
        if best >= torch.tensor(threshold):
            mapping[expert] = primary[where]
    return mapping[ids.long()].to(ids.dtype)


def routed(case: Case, backend: str, config: RerouteConfig) -> Routing:
    """The call of a case with other settings, and with a table that has factors."""
    device, (E, K) = device_of(backend), (len(case.similarity), case.ids.shape[1])
    layer = LayerSimilarity(case.similarity, torch.full((E, E), 0.5))
    policy = Sere({0: layer}, dataclasses.replace(config, backend=name_of(backend)))
    step = TokenBatch(case.ids.to(device), case.weights.to(device))
    routing = policy.bind(LayerShape(0, E, K), device)(step)
    return Routing(routing.ids.cpu(), routing.weights.cpu())


@backends
@pytest.mark.parametrize(("T", "K", "E"), [(1, 4, 16), (16, 8, 64), (33, 4, 60), (64, 8, 128), (7, 10, 512)])
@pytest.mark.parametrize(("S", "threshold"), [(1, 0.0), (2, 0.0), (1, 0.99), (2, 0.97), (3, 0.5)])
def test_ids_are_those_of_the_published_algorithm(
    backend: str, T: int, K: int, E: int, S: int, threshold: float
) -> None:
    """Every slot has the id that the algorithm gives it, and every weight keeps its bits."""
    ids, weights = batch(T, K, E, seed=T + S)
    case = Case(ids, weights, similarity_matrix(E, E + S))
    routing = routed(case, backend, RerouteConfig.paper(S, threshold))
    assert torch.equal(routing.ids, published(ids, case.similarity, S, threshold))
    assert torch.equal(bits(routing.weights), bits(weights))


@backends
@given(case=cases())
@few
def test_the_preset_fills_and_cuts_nothing(backend: str, case: Case) -> None:
    """In any batch it is M = 0 without cap and factors: what the rows' heaviest slots need, and no more."""
    case = without(case, "scale", "min_gain", "cap", "keep", "num_tokens", "row_budgets")
    options: dict[str, Any] = case.options | {"active_experts": 0, "targets": "primary"}
    expected, _ = dataclasses.replace(case, options=options).run(backend)
    config = RerouteConfig(
        preset="paper", **{name: options[name] for name in ("select_top_k", "threshold", "merge", "sentinel")}
    )
    found = routed(case, backend, config)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(bits(found.weights), bits(expected.weights))


def test_the_default_is_another_rule() -> None:
    """A layer with the default settings reads more experts than the paper's, and fewer than the router's."""
    ids, weights = batch(64, 8, 128, seed=3)
    case = Case(ids, weights, similarity_matrix(128, 3))
    paper, default = (routed(case, "cpu", config) for config in (RerouteConfig.paper(1), RerouteConfig()))
    assert len(paper.ids.unique()) < len(default.ids.unique()) < len(ids.unique())
