"""Models that overflow, or whose weights are broken, in one layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sere
from sere.errors import InputError
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4
OPTIONS: dict[str, Any] = {"max_tokens": 64, "seq_len": 16, "progress": False}


def test_a_float16_model_that_overflows_in_one_expert() -> None:
    """The layer and the expert are named, and the dtypes that help."""
    model = tiny_model("qwen3_moe").to(torch.float16)
    model.model.layers[1].mlp.experts.down_proj.data[3] *= 1e4
    text = r"layers\.1\.mlp\.experts: the outputs of 1 of its 16 experts \[3\] are NaN .*; load .*bfloat16"
    with pytest.raises(InputError, match=text):
        sere.calibrate(model, tiny_tokenizer(), TEXTS, **OPTIONS)


def test_a_layer_of_equal_experts(caplog: pytest.LogCaptureFixture) -> None:
    """Untrained copies tell no expert apart: a line in the log says which layer."""
    model = tiny_model("qwen3_moe")
    for parameter in model.model.layers[0].mlp.experts.parameters():
        parameter.data.copy_(parameter.data[:1].expand_as(parameter))
    sere.calibrate(model, tiny_tokenizer(), TEXTS, **OPTIONS)
    assert any(
        "layers.0.mlp.experts: all similarities of its 16 experts are 1" in line for line in caplog.messages
    )
