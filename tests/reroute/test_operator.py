"""The operation inside compiled graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.reroute import COUNTERS, PreparedLayer, TokenBatch, prepare_layer, reroute
from sere.similarity.layer import LayerSimilarity
from tests.support.batches import BACKENDS, batch, device_of, name_of, similarity_matrix

pytestmark = pytest.mark.usefixtures("shim_backend")

LAYER = LayerSimilarity(similarity_matrix(16, 0))


def prepared_layer(backend: str, **settings: object) -> PreparedLayer:
    values = {"select_top_k": 1, "threshold": 0.4, "backend": name_of(backend)} | settings
    return prepare_layer(LAYER, RerouteConfig.from_mapping(values), top_k=4, device=device_of(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_operator_is_registered_properly(backend: str) -> None:
    """Torch's own checks of schema, aliasing and the fake implementation pass."""
    device = device_of(backend)
    ids, weights = (tensor.to(device) for tensor in batch(5, 4, 16, seed=1))
    prepared = prepared_layer(backend)
    *tensors, substitutes, config = prepared._layer
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)
    arguments = (
        name_of(backend), ids, weights, None, torch.tensor(4, device=device), tensors, substitutes, *config,
        counters,
    )  # fmt: skip
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.sere.reroute.default, arguments, test_utils=tests)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole(backend: str) -> None:
    """Under ``torch.compile(fullgraph=True)`` a layer gives the eager result and counts, step after step."""
    device = device_of(backend)
    prepared = prepared_layer(
        backend, merge="distinct", active_experts=((1, 2), (6, 5)), cap=True, targets="active"
    )
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)

    def step(ids: Tensor, weights: Tensor, num_tokens: Tensor) -> tuple[Tensor, Tensor]:
        routing = prepared.route(TokenBatch(ids, weights, num_tokens=num_tokens), counters)
        return routing.ids * 1, routing.weights * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed, n in [(1, 6), (2, 3), (3, 0)]:
        ids, weights = (tensor.to(device) for tensor in batch(6, 4, 16, seed=seed))
        num_tokens = torch.tensor(n, device=device)
        counters.zero_()
        expected_ids, expected_weights = step(ids, weights, num_tokens)
        expected_counters = counters.tolist()
        counters.zero_()
        actual_ids, actual_weights = compiled(ids, weights, num_tokens)
        assert torch.equal(actual_ids, expected_ids)
        assert torch.equal(actual_weights, expected_weights)
        assert counters.tolist() == expected_counters


def test_no_data_dependent_shapes_or_values() -> None:
    """The torch backend runs on fake tensors: nothing reads a value, so nothing synchronizes a device."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    ids, weights = batch(6, 4, 16, seed=1)
    prepared = prepared_layer(
        "torch", merge="distinct", active_experts=((1, 2), (6, 5)), cap=True, targets="active"
    )
    budget, num_tokens = torch.ones(6, dtype=torch.int32), torch.tensor(4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (ids, weights, budget, num_tokens)]
        routing = prepared.route(TokenBatch(*fakes))
    assert routing.ids.shape == ids.shape


def test_the_functional_form_says_what_to_compile() -> None:
    """It prepares its layer at each call, which no graph can hold: the error names the prepared form."""
    ids, weights = batch(6, 4, 16, seed=1)
    compiled = torch.compile(
        lambda i, w: reroute(i, w, LAYER, select_top_k=1), fullgraph=True, backend="eager"
    )
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"call prepare_layer"):
        compiled(ids, weights)
