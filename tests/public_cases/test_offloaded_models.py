"""Models whose weights accelerate keeps on a disk or in host memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import sere
from sere.errors import UnsupportedModel
from tests.support.calibration import ALL_METRICS
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4
OPTIONS: dict[str, Any] = {"metric": ALL_METRICS, "max_tokens": 64, "seq_len": 16, "progress": False}


def test_calibrate_a_model_on_disk(tmp_path: Path) -> None:
    """``device_map={"": "disk"}``: every metric gives the table of the model in memory."""
    tiny_model("qwen3_moe").save_pretrained(tmp_path / "model")
    options = {"offload_folder": tmp_path / "offload"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map={"": "disk"}, **options)
    made = sere.calibrate(model, tiny_tokenizer(), TEXTS, **OPTIONS)
    expected = sere.calibrate(tiny_model("qwen3_moe"), tiny_tokenizer(), TEXTS, **OPTIONS)
    for metric in ALL_METRICS:
        for index, layer in expected[metric].layers.items():
            found = made[metric].layers[index].similarity
            torch.testing.assert_close(found, layer.similarity, rtol=0, atol=0, equal_nan=True)


def test_a_model_without_weights_is_refused() -> None:
    """A model on the meta device: the first weight without values is named, and what to do."""
    model = tiny_model("qwen3_moe").to("meta")
    with pytest.raises(UnsupportedModel, match=r"has no values .*load the model's weights, or give the"):
        sere.calibrate(model, tiny_tokenizer(), TEXTS, **OPTIONS)
