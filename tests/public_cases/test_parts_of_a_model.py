"""People load models of several parts: text and images, or one that speaks what another one writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

import sere
from sere.errors import UnsupportedModel
from sere.structure import find_experts
from tests.support.architectures.build import tiny
from tests.support.calibration import char_tokenizer
from tests.support.tiny import tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4
OPTIONS: dict[str, Any] = {"max_tokens": 100, "seq_len": 16, "progress": False}
PROMPTS = torch.randint(3, 96, (6, 5), generator=torch.Generator().manual_seed(2))


def test_a_model_that_reads_and_speaks_names_its_parts_and_takes_the_one_that_reads() -> None:
    """Qwen3-Omni whole is refused with both names; its thinker is calibrated and re-routed within it."""
    model = tiny("qwen3_omni_moe", "qwen3_omni_moe")
    with pytest.raises(UnsupportedModel, match=r"re-routed: model\.thinker or model\.talker$"):
        sere.calibrate(model, char_tokenizer(), TEXTS, **OPTIONS)
    table = sere.calibrate(model.thinker, char_tokenizer(), TEXTS, **OPTIONS)
    with sere.apply(model.thinker, table, select_top_k=1) as handle:
        model.generate(PROMPTS, return_audio=False, thinker_max_new_tokens=4, thinker_eos_token_id=None)
        stats = handle.stats()
    assert all(layer.steps == 3 and layer.distinct_after < layer.distinct_before for layer in stats)


def test_the_part_that_speaks_is_refused_as_it_reads_no_text() -> None:
    """A talker needs what the thinker made, so token ids alone cannot calibrate it: the text says so."""
    talker = tiny("qwen3_omni_moe", "qwen3_omni_moe").talker
    with pytest.raises(UnsupportedModel, match="forward pass fails on token ids alone"):
        sere.calibrate(talker, char_tokenizer(), TEXTS, **OPTIONS)


def test_a_model_of_text_and_images_works_on_text(tmp_path: Path) -> None:
    """A saved Qwen3-VL-MoE is calibrated from its path both ways, and re-routed where it generates text."""
    tiny("qwen3_vl_moe", "qwen3_vl_moe").save_pretrained(tmp_path / "model")
    char_tokenizer().save_pretrained(tmp_path / "model")
    tables = [
        sere.calibrate(tmp_path / "model", texts=TEXTS, low_memory=low, sensitivity=False, **OPTIONS)
        for low in (False, True)
    ]
    assert tables[0].fingerprint == tables[1].fingerprint
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    with sere.apply(model, tables[0], select_top_k=1) as handle:
        model.generate(PROMPTS, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        stats = handle.stats()
    assert all(layer.steps == 3 and layer.distinct_after < layer.distinct_before for layer in stats)


def test_two_groups_of_experts_in_one_layer_are_refused() -> None:
    """There is no part to pass where one decoder layer has both groups: the text says what is expected."""
    model = tiny_model("qwen3_moe")
    model.model.layers[1].mlp.others = nn.ModuleDict(
        {"experts": tiny_model("qwen3_moe").model.layers[0].mlp.experts}
    )
    with pytest.raises(UnsupportedModel, match="are both layer 1; expected one group of experts per decoder"):
        find_experts(model)
