"""Fixtures: a tiny model with its tokenizer, which can be asked questions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A tokenizer whose vocabulary covers every task."""
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """A model with plain full attention, as many embeddings as the tokenizer has tokens."""
    return tiny_model("qwen3_moe", vocab_size=len(tokenizer))
