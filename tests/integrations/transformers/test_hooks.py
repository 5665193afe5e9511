"""What the hooks touch, and calls that they cannot or need not re-route."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.errors import UnsupportedModel
from sere.integrations.transformers.hooks import HookedLayer
from sere.integrations.transformers.inputs import cache_argument
from sere.policies import TopK
from sere.reroute import Routing, StepDtypes, TokenBatch
from sere.structure import find_experts
from tests.support.decoding import decode, prefilled, prompts, random_table


def test_nothing_is_patched(model: PreTrainedModel) -> None:
    """No attribute of any module and no forward of any class changes."""
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    forwards = {type(m): type(m).forward for m in model.modules()}
    handle = integration.apply(model, random_table(model), select_top_k=1)
    decode(model, prompts())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names
    assert all(kind.forward is forward for kind, forward in forwards.items())
    handle.remove()


def test_experts_called_by_keyword_are_refused(model: PreTrainedModel) -> None:
    """A model whose block names its arguments would not be re-routed: an error instead of silence."""
    block = model.model.layers[0].mlp
    gate, experts = block.gate, block.experts

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        _, weights, ids = gate(flat)
        return experts(flat, top_k_index=ids, top_k_weights=weights).reshape(hidden.shape)  # type: ignore[no-any-return]

    block.forward = forward
    integration.apply(model, random_table(model), select_top_k=1)
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.mlp\.experts: expected a call .* got 1"):
        decode(model, prompts())


def test_a_call_of_the_decoder_alone_is_re_routed(model: PreTrainedModel) -> None:
    """Code that passes over the outermost model, as adapters and own loops do, finds the hooks inside."""
    handle = integration.apply(model, random_table(model), select_top_k=1)
    cache = prefilled(model, prompts(3))
    inner: nn.Module = model.model
    with torch.no_grad():
        inner(torch.tensor([[8], [9], [10]]), **cache_argument(inner, cache))
    assert [layer.steps for layer in handle.stats()] == [1, 1]
    assert handle.activity().calls == 2


def test_layers_called_outside_of_any_call_are_left_alone(model: PreTrainedModel) -> None:
    """Where nothing is known of the rows, nothing is changed."""
    handle = integration.apply(model, random_table(model), select_top_k=1)
    with torch.no_grad():
        model.model.layers[0].mlp(torch.ones(3, 1, 32))
    assert handle.stats()[0].steps == 0


def test_a_layer_that_moved_is_bound_where_it_is_now(model: PreTrainedModel) -> None:
    """The rule is bound to a device once; a layer on another one gets a router there."""
    (first, _) = find_experts(model)
    layer = HookedLayer(first, TopK(1), torch.device("cpu"))
    here = layer.router
    batch = TokenBatch(torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 4))
    layer.route(batch)
    assert layer.router is here
    assert int(layer.counters[0]) == 1
    moved = TokenBatch(batch.topk_ids.to("meta"), batch.topk_weights.to("meta"))
    assert layer.route(moved).ids.device.type == "meta"
    assert layer.counters.device.type == "meta"
    assert layer.router.layer == here.layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_backend_is_tried_with_what_routers_give(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """A layer knows before its first step which dtypes its router may give; what it gives is among them."""
    model = model.to(dtype)
    given: set[StepDtypes] = set()
    route: Callable[[HookedLayer, TokenBatch], Routing] = HookedLayer.route

    def watched(layer: HookedLayer, batch: TokenBatch) -> Routing:
        given.add(StepDtypes(batch.topk_ids.dtype, batch.topk_weights.dtype))
        return route(layer, batch)

    monkeypatch.setattr(HookedLayer, "route", watched)
    handle = integration.apply(model, random_table(model), select_top_k=1)
    wide = [StepDtypes(torch.int64, weights) for weights in (torch.float32, torch.bfloat16)]
    expected = wide if dtype is torch.bfloat16 else wide[:1]
    assert [list(layer.router.layer.dtypes) for layer in handle.layers] == [expected] * 2
    decode(model, prompts())
    assert given
    assert given <= set(expected)
