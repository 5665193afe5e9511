"""Somebody changes the model, or what stands around it, while re-routing is on."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

import sere
from sere.errors import InputError
from sere.integrations.transformers.inputs import cache_argument
from tests.support.decoding import prompts, random_table
from tests.support.tiny import tiny_model


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("qwen3_moe")


def apply(model: PreTrainedModel, **settings: Any) -> Any:
    return sere.apply(model, random_table(model), **{"select_top_k": 1} | settings)


def generate(model: PreTrainedModel) -> None:
    model.generate(prompts(), max_new_tokens=4, do_sample=False)


def test_one_layer_is_replaced(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    """The new layer has no hook: the log says which one re-routes nothing, though the other does."""
    with apply(model):
        model.model.layers[1] = tiny_model("qwen3_moe").model.layers[1]
        generate(model)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "1 of 2 layers (model.layers.1.mlp.experts) saw none of 3 re-routed steps" in line


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_training_with_gradient_checkpointing(model: PreTrainedModel) -> None:
    """The backward pass would compute other experts than the forward pass: refused, unless switched off."""
    model.train()
    model.gradient_checkpointing_enable()
    with apply(model, phases="all") as handle:
        with pytest.raises(InputError, match="gradient_checkpointing_disable"):
            model(prompts(), labels=prompts())
        handle.enabled = False
        model(prompts(), labels=prompts()).loss.backward()


# Tracing is deprecated, and reads every attribute of a model, deprecated ones too.
@pytest.mark.filterwarnings("ignore")
def test_tracing(model: PreTrainedModel) -> None:
    """``torch.jit.trace`` would keep one batch's experts as constants: refused."""

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return model(tokens, use_cache=False).logits

    with apply(model, phases="all"), pytest.raises(InputError, match=r"torch\.jit\.trace"):
        torch.jit.trace(Logits(), (prompts(),), strict=False, check_trace=False)


def test_a_removed_handle_is_used_again(model: PreTrainedModel) -> None:
    """A second ``with`` block, or ``enabled = True``, says that nothing would be re-routed."""
    with apply(model) as handle:
        with handle:
            generate(model)
        assert handle.active
    with pytest.raises(InputError, match=r"call sere\.apply again"), handle:
        pass
    with pytest.raises(InputError, match=r"call sere\.apply again"):
        handle.enabled = True


def test_a_model_holds_its_handle(model: PreTrainedModel) -> None:
    """A copy of the model has a removed handle; saving the model says what to do."""
    with apply(model) as handle:
        model.handle = handle
        assert not copy.deepcopy(model).handle.active
        with pytest.raises(InputError, match="delete the attribute"):
            torch.save(model, io.BytesIO())
        del model.handle


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_apply_in_inference_mode_and_decode_outside(model: PreTrainedModel, backend: str) -> None:
    """The statistics can be counted and reset in any mode."""
    with torch.inference_mode():
        handle = apply(model, backend=backend)
    cache = DynamicCache(config=model.config)
    for tokens in (prompts(), prompts()[:, :1]):
        model(tokens, **cache_argument(model, cache))
    assert handle.stats()[0].steps == 1
    handle.reset_stats()
    handle.remove()
