"""Experts that a function of the user's own computes, registered with Transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import sere
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4


def renamed_weights(module: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Compute experts whose weights have other names than the module's class gives them."""
    gate, up = torch.einsum("th,tkoh->tko", hidden, module.w13[ids]).chunk(2, dim=-1)
    outputs = torch.einsum("tki,tkhi->tkh", F.silu(gate) * up, module.w2[ids])
    return (outputs * weights[..., None]).sum(dim=1)


def test_calibrate_through_a_registered_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ALL_EXPERTS_FUNCTIONS.register``, and no ``gate_up_proj`` in the module: the same similarities."""
    options: dict[str, Any] = {"max_tokens": 64, "seq_len": 16, "progress": False}
    expected = sere.calibrate(tiny_model("qwen3_moe"), tiny_tokenizer(), TEXTS, **options)
    model = tiny_model("qwen3_moe")
    for layer in model.model.layers:
        experts = layer.mlp.experts
        experts.w13, experts.w2 = experts.gate_up_proj, experts.down_proj
        del experts.gate_up_proj, experts.down_proj
    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, "mine", renamed_weights)
    model.config._experts_implementation = "mine"
    made = sere.calibrate(model, tiny_tokenizer(), TEXTS, **options)
    for index, layer in expected.layers.items():
        # An expert that no token was routed to is not known in both.
        torch.testing.assert_close(
            made.layers[index].similarity, layer.similarity, rtol=0, atol=1e-5, equal_nan=True
        )
