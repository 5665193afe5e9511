"""Quantized checkpoints: their size once dequantized, and whether Transformers can load them here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.quantizers import AutoHfQuantizer

from sere.calibrate import calibrate, memory
from sere.checkpoints.quantization import dequantized_bytes, quantization_in, why_not_loaded
from sere.errors import UnsupportedModel
from sere.outlook import look_at
from tests.support.damage import change_json
from tests.support.gpus import pretend_gpus
from tests.support.tiny import tiny_model

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """A tiny model whose config says that it is quantized."""
    tiny_model("qwen3_moe").save_pretrained(tmp_path)
    return change_json(tmp_path / "config.json", quantization_config=FP8)


@pytest.mark.parametrize("name", ["quantization_config", "compression_config"])
def test_the_config_says_how_weights_are_quantized(name: str) -> None:
    """At its top or in its text config, under either name."""
    assert quantization_in({name: FP8}) == quantization_in({"text_config": {name: FP8}}) == FP8
    assert quantization_in({name: None, "text_config": None}) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"quant_method": "nonsense"}, "Transformers does not know it"),
        ({"quant_algo": "NVFP4"}, "no `quant_method`"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "gptqmodel"),
        (FP8 | {"dequantize": True}, None),
    ],
    ids=["unknown", "unnamed", "package", "loads"],
)
def test_transformers_is_asked_whether_it_can_load_them(
    config: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reason is what it would say while it loads the weights."""
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    found = why_not_loaded(config)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize("dequantize", [True, False])
def test_mxfp4_is_loaded_only_where_it_is_dequantized(
    dequantize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its kernels there, Transformers keeps experts packed, and they cannot be calibrated."""
    kept = SimpleNamespace(
        quantization_config=SimpleNamespace(dequantize=dequantize), validate_environment=lambda **_: None
    )
    monkeypatch.setattr(AutoHfQuantizer, "from_config", lambda *_, **__: kept)
    assert (why_not_loaded({"quant_method": "mxfp4"}) is None) is dequantize


def test_weights_count_in_bfloat16(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the outlook and for the choice of the way; on a GPU the files' bytes count."""
    size = 2 * sum(one.numel() for one in tiny_model("qwen3_moe").parameters())
    assert dequantized_bytes(tiny_model("qwen3_moe")) == look_at(quantized).dequantized_bytes == size
    (quantized / "model.safetensors").write_bytes(bytes(size // 2))
    monkeypatch.setattr(memory, "available_memory", lambda: memory.LEAST_ROOM + size - 1)
    assert not memory.fits_memory(quantized)
    pretend_gpus(monkeypatch, memory.LEAST_ROOM + size // 2)
    assert memory.fits_memory(quantized, device="cuda")
    monkeypatch.setattr(memory, "available_memory", lambda: memory.LEAST_ROOM + size)
    assert memory.fits_memory(quantized)


def test_what_does_not_fit_is_for_vllm(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without texts, too: to give some would not help."""
    monkeypatch.setattr(memory, "available_memory", lambda: 1)
    with pytest.raises(
        UnsupportedModel, match=r"too large for this machine's memory \(--whole.*let vLLM run .*--engine vllm"
    ):
        calibrate(quantized)
