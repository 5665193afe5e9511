"""The exported model as users get it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sere import bundled
from sere.eval.tasks import calibration_texts, mixed


def test_it_loads_and_answers() -> None:
    """AutoModelForCausalLM and AutoTokenizer take the folder, and most of 40 test questions are right."""
    path = bundled.model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    assert type(model).__name__ == "Qwen3MoeForCausalLM"
    assert model.dtype == torch.bfloat16
    asked = mixed(split="test", per_task=4)
    prompts = [question.prompt for question in asked]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        out = model.generate(**inputs)
    texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = sum(question.is_right(text) for question, text in zip(asked, texts, strict=True))
    assert right >= 32


def test_shape_and_size() -> None:
    """At least 32 experts, top 4 or more, and weights small enough for the wheel."""
    path = bundled.model_path()
    config = AutoModelForCausalLM.from_pretrained(path).config
    assert config.num_experts >= 32
    assert config.num_experts_per_tok >= 4
    assert config.norm_topk_prob
    assert (path / "model.safetensors").stat().st_size <= 20_000_000


def test_the_tokenizer_gives_back_its_texts() -> None:
    """A fast tokenizer, one token per character, eos and pad distinct, no BOS."""
    tokenizer = AutoTokenizer.from_pretrained(bundled.model_path())
    assert tokenizer.is_fast
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token == "<|pad|>"
    for text in calibration_texts(count=40):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text


def test_missing_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installation without the weights has an error of its own."""
    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors: install sere again"):
        bundled.model_path()
