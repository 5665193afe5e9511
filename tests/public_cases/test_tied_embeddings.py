"""A checkpoint that holds tied embeddings under the output head's name, calibrated layer by layer."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

import sere
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4


def test_low_memory_takes_lm_head_for_the_embeddings(tmp_path: Path) -> None:
    """``low_memory=True`` gives the table that the whole model gives without sensitivities."""
    tiny_model("qwen3_moe", tie_word_embeddings=True).save_pretrained(tmp_path)
    named = load_file(tmp_path / "model.safetensors")
    named["lm_head.weight"] = named.pop("model.embed_tokens.weight")
    save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    whole, by_layers = (
        sere.calibrate(
            tmp_path, tiny_tokenizer(), TEXTS,
            max_tokens=64, seq_len=16, progress=False, sensitivity=False,
            low_memory=low_memory,
        )
        for low_memory in (False, True)
    )  # fmt: skip
    assert whole.fingerprint == by_layers.fingerprint
