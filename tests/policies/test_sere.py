"""SERE as a policy: prepared once per layer and device, changed in place while graphs read it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import ConfigError, TableError
from sere.policies import LayerShape, Sere
from sere.policies.sere import SereRouter
from sere.reroute import COUNTERS, TokenBatch, reroute
from sere.similarity.layer import LayerSimilarity
from tests.support.policies import CPU, counted

SHAPE = LayerShape(3, 8, 3)
LAYER = LayerSimilarity(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).fill_diagonal_(1.0))


def bound(**settings: object) -> SereRouter:
    config = RerouteConfig.from_mapping({"active_experts": 0} | settings)
    return Sere({3: LAYER}, config).bind(SHAPE, CPU)


def batch() -> TokenBatch:
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    weights, ids = logits.softmax(1).topk(3, dim=1)
    return TokenBatch(ids, weights)


@pytest.mark.parametrize(
    "settings",
    [{}, {"threshold": 0.6, "active_experts": 4}, {"keep": {3: [2, 5]}}],
    ids=["S", "floor", "keep"],
)
def test_a_router_decides_and_counts_as_the_operation(settings: dict[str, object]) -> None:
    """Ids, weights and counters are those of ``sere.reroute`` with the same settings."""
    router, step = bound(**settings), batch()
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64)
    options = {"active_experts": 0} | settings
    keep = options.pop("keep", {3: []})[3]  # type: ignore[index]
    expected = reroute(step.topk_ids, step.topk_weights, LAYER, keep=keep, counters=counters, **options)  # type: ignore[arg-type]
    result = router(step)
    assert torch.equal(result.ids, expected.ids)
    assert torch.equal(result.weights, expected.weights)
    assert counted(router) == dict(zip(COUNTERS, counters.tolist(), strict=True))


def test_an_update_writes_into_the_same_tensors() -> None:
    """The router decides as one made with the new settings, and a captured graph reads the new values."""
    router, other = bound(), bound(threshold=0.6, keep={3: [2, 5]})
    before = {name: tensor.data_ptr() for name, tensor in router.tensors().items()}
    router(batch())
    router.prepared.update(other.prepared)
    assert {name: tensor.data_ptr() for name, tensor in router.tensors().items()} == before
    assert torch.equal(router(batch()).ids, other(batch()).ids)
    assert counted(router)["steps"] == 2, "the counters go on"


def test_every_tensor_of_the_prepared_layer_is_named() -> None:
    """What an engine keeps through its sleep: the counters, and all that the backend reads."""
    router = bound()
    assert router.tensors() == {"counters": router.counters} | router.prepared.tensors()
    assert len(router.tensors()) > 1


def test_a_layer_without_similarities_is_named() -> None:
    """The text names the layer and those that the table has, at most ten."""
    config = RerouteConfig(select_top_k=1)
    with pytest.raises(TableError, match=r"no similarities for layer 4; the table has the layers 3$"):
        Sere({3: LAYER}, config).bind(LayerShape(4, 8, 3), CPU)
    many = dict.fromkeys(range(12), LAYER)
    with pytest.raises(TableError, match=r"the layers 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\. \(12 layers\)$"):
        Sere(many, config).bind(LayerShape(40, 8, 3), CPU)


@pytest.mark.parametrize("settings", [{"use_scale": True}, {"min_gain": 0.01}], ids=["use_scale", "min_gain"])
def test_factors_that_the_table_lacks_are_refused(settings: dict[str, Any]) -> None:
    """``use_scale`` and ``min_gain`` need a table of the projection metric."""
    (name,) = settings
    text = f"{name}: the table has no factors; calibrate with metric='projection', or leave {name} out"
    with pytest.raises(ConfigError, match=text):
        bound(**settings)


def test_layers_without_factors_are_named() -> None:
    """Asked for, factors are needed in every layer; unasked, those that there are are used."""
    with_factors = LayerSimilarity(LAYER.similarity, scale=torch.full((8, 8), 0.5))
    layers = {0: LAYER, 3: with_factors}
    with pytest.raises(ConfigError, match="use_scale: the table has no factors for the layer 0; calibrate"):
        Sere(layers, RerouteConfig(use_scale=True))
    with pytest.raises(ConfigError, match="min_gain: the table has no factors for the layer 0; calibrate"):
        Sere(layers, RerouteConfig(min_gain=0.01))
    Sere(layers, RerouteConfig(layers={3: {"min_gain": 0.01}}))
    rule = Sere(layers, RerouteConfig(active_experts=0))
    step = batch()
    scaled = rule.bind(SHAPE, CPU)(step)
    moved = scaled.ids != step.topk_ids
    assert moved.any()
    assert torch.equal(scaled.weights[moved], step.topk_weights[moved] * 0.5)
    plain = rule.bind(LayerShape(0, 8, 3), CPU)(step)
    assert torch.equal(plain.weights, step.topk_weights)


def test_layers_that_the_table_lacks_are_refused() -> None:
    """Settings of a layer without similarities name those that there are."""
    with pytest.raises(
        ConfigError, match=r"layers: layer 1 has no similarities; the table has the layers 3$"
    ):
        bound(active_experts={1: 24})


def test_a_layer_is_bound_with_its_own_settings() -> None:
    """S, ρ and M of the layer's index, not those of all layers."""
    own = bound(layers={3: {"select_top_k": 2, "threshold": 0.6, "active_experts": 5}})
    same = bound(select_top_k=2, threshold=0.6, active_experts=5)
    assert torch.equal(own(batch()).ids, same(batch()).ids)
    assert not torch.equal(own(batch()).ids, bound()(batch()).ids)
