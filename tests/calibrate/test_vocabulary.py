"""Tokens and sequences that the model has no embeddings for are refused before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sere.calibrate import calibrate
from sere.calibrate.packing import Tokens
from sere.calibrate.vocabulary import check_tokens
from sere.errors import ConfigError, DataError
from tests.support.calibration import char_tokenizer, save_tiny
from tests.support.tiny import tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog."] * 4
OPTIONS: dict[str, Any] = {"max_tokens": 64, "seq_len": 16, "progress": False}


def larger() -> Any:
    """Return a tokenizer of 97 tokens, the last of which is the letter e."""
    tokenizer = char_tokenizer()
    tokenizer.add_tokens(["dog"])
    return tokenizer


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_token_beyond_the_embedding_is_named(low_memory: bool, tmp_path: Path) -> None:
    """The token, its id, the embedding's rows and the tokenizer's size; no work folder stays."""
    path = save_tiny(tmp_path, "qwen3_moe")
    text = (
        r"token 'dog' has the id 96, but the model's embedding has 96 rows, ids 0 to 95 \(the tokenizer has "
        r"97 tokens\); give the model's own tokenizer"
    )
    work_dir = tmp_path / "work" if low_memory else None
    with pytest.raises(DataError, match=text):
        calibrate(path, larger(), TEXTS, low_memory=low_memory, work_dir=work_dir, **OPTIONS)
    assert not (tmp_path / "work").exists()


def test_only_tokens_that_are_used_count() -> None:
    """A tokenizer with more tokens than the embedding has rows is taken as long as the texts need none."""
    table = calibrate(tiny_model("qwen3_moe"), larger(), ["The quick brown fox"] * 8, **OPTIONS)
    assert table.calibration_tokens == 64


def test_a_much_smaller_tokenizer_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """With half the embedding's rows or less it is most likely another model's."""
    check_tokens(Tokens(torch.arange(3, 20), 4, tokenizer=char_tokenizer()), tiny_model("qwen3_moe"))
    assert not caplog.messages
    check_tokens(
        Tokens(torch.arange(3, 20), 4, tokenizer=char_tokenizer()), tiny_model("qwen3_moe", vocab_size=200)
    )
    (line,) = caplog.messages
    assert "the tokenizer has 96 tokens, the model's embedding 200 rows" in line


def test_a_processor_stands_for_its_tokenizer() -> None:
    """A processor of texts and images takes images first: its tokenizer is what is meant."""

    class Processor:
        tokenizer = char_tokenizer()

        def __call__(self, images: Any) -> Any:
            raise AssertionError("asked for images")

    model = tiny_model("qwen3_moe")
    made = [calibrate(model, tokenizer, TEXTS, **OPTIONS) for tokenizer in (Processor(), char_tokenizer())]
    assert made[0].fingerprint == made[1].fingerprint


def test_sequences_beyond_the_learned_positions_are_refused() -> None:
    """A table of 128 positions has no row for a 129th; rotary positions go on, with a line in the log."""
    model = tiny_model("qwen3_moe")
    model.model.wpe = nn.Embedding(130, 32)  # two rows for padding
    tokens = Tokens(torch.full((200,), 5), 129)
    with pytest.raises(
        ConfigError, match=r"seq_len: expected at most 128, the positions that model.wpe has, got 129"
    ):
        check_tokens(tokens, model)
    check_tokens(Tokens(torch.full((200,), 5), 128), model)


def test_sequences_beyond_the_trained_length_are_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Rotary positions can be computed for any length; the model was made for fewer."""
    check_tokens(Tokens(torch.full((200,), 5), 129), tiny_model("qwen3_moe"))
    (line,) = caplog.messages
    assert "sequences of 129 tokens are longer than the 128 positions" in line
