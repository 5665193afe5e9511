"""A small model for the tests of this folder."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from tests.support.tiny import tiny_model


@pytest.fixture
def model() -> PreTrainedModel:
    """A tiny Qwen3-MoE: two layers of 16 experts, 4 per token."""
    return tiny_model("qwen3_moe")
