"""Tokenizers that are not the model's."""

from __future__ import annotations

from typing import Any

import pytest

import sere
from sere.errors import DataError
from tests.checkpoints import tiny_tokenizer
from tests.tiny import tiny_model

OPTIONS: dict[str, Any] = {"max_tokens": 64, "seq_len": 16, "progress": False}


def test_a_token_that_the_embedding_has_no_row_for() -> None:
    """The token, its id and both sizes are named before anything is computed."""
    model, tokenizer = tiny_model("qwen3_moe", vocab_size=60), tiny_tokenizer()
    largest = tokenizer.convert_tokens_to_ids("Z")
    text = rf"token 'Z' has the id {largest}, but the model's embedding has 60 rows.* {len(tokenizer)} tokens"
    with pytest.raises(DataError, match=text):
        sere.calibrate(model, tokenizer, ["A to Z"] * 20, **OPTIONS)


def test_a_tokenizer_that_knows_none_of_the_texts() -> None:
    """Texts of unknown tokens alone make no table."""
    with pytest.raises(DataError, match="every token of the texts is unknown"):
        sere.calibrate(tiny_model("qwen3_moe"), tiny_tokenizer(), ["\u4e16\u754c"] * 50, **OPTIONS)
