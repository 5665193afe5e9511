"""Sensitivities: what they measure, that the model is left alone, and models that have none."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sere.calibrate import calibrate
from sere.calibrate.experts import expert_outputs
from sere.calibrate.packing import Tokens
from sere.calibrate.sensitivity import PRIOR, SEQUENCES, measure_sensitivity
from sere.structure import find_experts
from tests.support.calibration import char_tokenizer, config, some_tokens
from tests.support.tiny import Looping, tiny_model

TEXTS = ["the quick brown fox jumps over the lazy dog"] * 8


def by_outputs(model: Any, tokens: Tokens) -> dict[int, Tensor]:
    """The same from its definition: every expert's output times the gradient of the layer's output."""
    layers = find_experts(model)
    generator = torch.Generator().manual_seed(0)
    E = layers[0].num_experts
    cost = {layer.index: torch.zeros(E, dtype=torch.float64) for layer in layers}
    share = {layer.index: torch.zeros(E, dtype=torch.float64) for layer in layers}
    seen: dict[int, tuple[Any, ...]] = {}
    for layer in layers:

        def keep(_: nn.Module, args: Any, output: Tensor, index: int = layer.index) -> None:
            seen[index] = (*args[:3], output)

        layer.module.register_forward_hook(keep)
    for batch in tokens.batches(SEQUENCES):
        logits = model(input_ids=batch, use_cache=False).logits.flatten(0, 1)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = nn.functional.cross_entropy(logits, drawn, reduction="sum")
        gradients = torch.autograd.grad(loss, [seen[layer.index][3] for layer in layers])
        for layer, gradient in zip(layers, gradients, strict=True):
            hidden, ids, weights, _ = seen[layer.index]
            outputs = expert_outputs(layer, hidden.detach())
            slope = torch.einsum("eth,th->te", outputs, gradient.flatten(0, -2)).gather(1, ids)
            squared = weights.detach().double() ** 2
            cost[layer.index].index_add_(0, ids.flatten(), (squared * slope.double() ** 2).flatten())
            share[layer.index].index_add_(0, ids.flatten(), squared.flatten())
    found = {}
    for index in cost:
        prior = PRIOR * share[index].mean()
        mean = cost[index].sum() / share[index].sum()
        value = (cost[index] + prior * mean) / (share[index] + prior)
        found[index] = (value / value.max()).float()
    return found


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_it_is_the_squared_slope_of_the_log_likelihood(name: str) -> None:
    """An expert's value is the mean of (g · Y)² over its slots, weighted by w², over the layer's largest."""
    model, tokens = tiny_model(name), some_tokens(200)
    expected = by_outputs(model, tokens)
    for hooked in find_experts(model):
        hooked.module._forward_hooks.clear()
    found = measure_sensitivity(model, find_experts(model), tokens, config())
    assert list(found) == list(expected)
    for index, value in found.items():
        assert torch.allclose(value, expected[index].clamp(min=1e-6), rtol=1e-3)
        assert float(value.max()) == 1.0


def test_an_expert_with_small_outputs_costs_little() -> None:
    """The most sensitive expert becomes the least sensitive one, if it outputs a hundredth."""
    model = tiny_model("qwen3_moe")
    layers, tokens = find_experts(model), some_tokens(200)
    most = int(measure_sensitivity(model, layers, tokens, config())[layers[0].index].argmax())
    with torch.no_grad():
        layers[0].module.down_proj[most] /= 100
    assert int(measure_sensitivity(model, layers, tokens, config())[layers[0].index].argmin()) == most


def test_the_model_is_left_as_it_was() -> None:
    """Hooks, modes, gradients and which parameters ask for them are as before."""
    model = tiny_model("qwen3_moe").train()
    first, *others = model.parameters()
    first.requires_grad_(False)
    table = calibrate(model, char_tokenizer(), TEXTS, max_tokens=200, seq_len=32, progress=False)
    assert all(layer.sensitivity is not None for layer in table.layers.values())
    assert not first.requires_grad
    assert all(parameter.requires_grad for parameter in others)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_a_model_without_gradients_is_calibrated_without(caplog: pytest.LogCaptureFixture) -> None:
    """A warning says so and why; the similarities are those of any other calibration."""
    model = tiny_model("qwen3_moe")
    options: dict[str, Any] = {"max_tokens": 200, "seq_len": 32, "progress": False}
    whole = calibrate(model, char_tokenizer(), TEXTS, **options)
    for layer in find_experts(model):
        layer.module.register_forward_hook(lambda *args: args[-1].detach())
    with caplog.at_level(logging.WARNING, logger="sere"):
        table = calibrate(model, char_tokenizer(), TEXTS, **options)
    assert "sensitive the model is to each expert was not measured (RuntimeError" in caplog.text
    for index, layer in table.layers.items():
        assert layer.sensitivity is None
        assert torch.equal(layer.similarity, whole.layers[index].similarity)


def test_it_can_be_left_out() -> None:
    """``sensitivity=False`` measures none, and the similarities are the same."""
    model, options = tiny_model("qwen3_moe"), {"max_tokens": 200, "seq_len": 32, "progress": False}
    table = calibrate(model, char_tokenizer(), TEXTS, sensitivity=False, **options)
    assert all(layer.sensitivity is None for layer in table.layers.values())


def test_a_layer_that_is_called_twice_counts_both_calls() -> None:
    """A model that loops over its layers has one value per expert."""
    model = tiny_model("qwen3_moe")
    model.model.layers = Looping(model.model.layers)
    found = measure_sensitivity(model, find_experts(model), some_tokens(100), config())
    assert all(bool((value > 0).all() & (value <= 1).all()) for value in found.values())
