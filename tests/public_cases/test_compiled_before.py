"""Somebody compiles a model, uses it, and turns re-routing on afterward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sere
from sere.errors import InputError
from tests.support.decoding import prompts, random_table
from tests.support.tiny import tiny_model


def compile_model(model: Any) -> None:
    model.forward = torch.compile(model.forward, backend="eager")


def compile_decoder(model: Any) -> None:
    model.model = torch.compile(model.model, backend="eager")


def compile_layers(model: Any) -> None:
    for layer in model.model.layers:
        layer.compile(backend="eager")


@pytest.mark.parametrize("how", [compile_model, compile_decoder, compile_layers])
def test_compile_use_apply(how: Any) -> None:
    """The model is refused with what to do; it is not silently left as it is."""
    torch._dynamo.reset()
    model = tiny_model("qwen3_moe")
    table = random_table(model)
    how(model)
    with torch.no_grad():
        model(prompts())
    with pytest.raises(InputError, match=r"it is already compiled .*apply re-routing before compiling"):
        sere.apply(model, table, select_top_k=1)
    torch._dynamo.reset()
