"""Tokenizers that are not the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import sere
from sere.cli import main
from sere.errors import DataError
from tests.support.checkpoints import save_checkpoint, tiny_tokenizer
from tests.support.tiny import tiny_model

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


@pytest.fixture
def larger(tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer has a word that its model has no row for."""
    path = save_checkpoint(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["fox"])
    tokenizer.save_pretrained(path)
    return path


def test_a_prompt_with_a_token_that_the_model_lacks(larger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``generate`` names the token, as ``calibrate`` and ``eval`` do; other prompts are completed."""
    assert main(["generate", str(larger), "--prompt", "a fox"]) == 2
    assert "token 'fox' has the id 96, but the model's embedding has 96 rows" in capsys.readouterr().err
    assert main(["generate", str(larger), "--prompt", "a cat", "--max-new-tokens", "2"]) == 0


@pytest.mark.parametrize("name", ["generate", "eval"])
def test_prompts_that_are_longer_than_the_model_was_made_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """``generate`` and ``eval`` say so, for what comes of it may be nonsense."""
    path = str(save_checkpoint(tmp_path))
    (tmp_path / "prompts.txt").write_text("a" * 200 + "\nb\n")
    prompts = [
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--batch-size",
        "2",
        "--setting",
        "topk:select_top_k=1",
    ]
    text = "the longest prompt and its 3 new tokens are 203 tokens, and the model has 128 positions"
    options = {"generate": ["--prompt", "a" * 200], "eval": prompts}[name]
    with caplog.at_level("WARNING", "sere"):
        assert main([name, path, *options, "--max-new-tokens", "3"]) == 0
    assert [text in line for line in caplog.messages] == [True]
