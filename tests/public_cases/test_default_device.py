"""Somebody sets PyTorch's default device to another than the model's."""

from __future__ import annotations

import torch

import sere
from tests.integrations.transformers.decoding import decode, prompts, random_table
from tests.tiny import tiny_model


def test_apply_under_a_default_device() -> None:
    """``with torch.device(…)`` around ``sere.apply`` changes nothing of what it prepares."""
    model = tiny_model("qwen3_moe")
    table = random_table(model)
    with sere.apply(model, table, select_top_k=1):
        expected, _ = decode(model, prompts())
    with torch.device("meta"):
        handle = sere.apply(model, table, select_top_k=1)
    with handle:
        assert torch.equal(decode(model, prompts())[0], expected)
