"""Layer by layer, a checkpoint gives the tables of the complete model, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sere.calibrate import calibrate, memory
from sere.calibrate.layerwise import by_layers
from sere.errors import DataError, InputError, UnsupportedModel
from tests.support.calibration import by_layers_of, char_tokenizer, in_memory_of, save_tiny, worst
from tests.support.damage import drop
from tests.support.tiny import ARCHITECTURES, tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 8
OPTIONS: dict[str, Any] = {"max_tokens": 100, "seq_len": 16, "progress": False}
# Full and sliding attention in turn, linear attention, dense layers first, and layers behind all experts.
DEEP = [
    ("gpt_oss", {"num_hidden_layers": 4}),
    ("qwen3_next", {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}),
    ("deepseek_v3", {"num_hidden_layers": 4, "first_k_dense_replace": 2}),
    ("qwen3_moe", {"num_hidden_layers": 4, "mlp_only_layers": [0, 3]}),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_model_in_memory_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    """Layer by layer, every metric of every architecture is exactly what the whole model gives."""
    path = save_tiny(tmp_path, architecture)
    assert worst(by_layers_of(path, tmp_path / "work"), in_memory_of(path)) == 0


@pytest.mark.parametrize(("architecture", "overrides"), DEEP)
def test_equals_on_deeper_and_mixed_stacks(architecture: str, overrides: Any, tmp_path: Path) -> None:
    """Different kinds of decoder layers in one stack each get their own masks and arguments."""
    path = save_tiny(tmp_path, architecture, **overrides)
    assert worst(by_layers_of(path, tmp_path / "work", "frobenius"), in_memory_of(path, "frobenius")) == 0


@pytest.mark.parametrize("in_memory", [True, False])
def test_equals_in_bfloat16(in_memory: bool, tmp_path: Path) -> None:
    """A bfloat16 checkpoint is computed in bfloat16 in both ways, and its hidden states survive the file."""
    path = tmp_path / "model"
    tiny_model("qwen3_moe", num_hidden_layers=3).to(torch.bfloat16).save_pretrained(path)
    result = by_layers_of(path, tmp_path / "work", "projection", in_memory=in_memory)
    assert worst(result, in_memory_of(path, "projection")) == 0


def test_path_chooses_by_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is loaded whole where it fits, goes layer by layer where it does not, and both are equal."""
    path = save_tiny(tmp_path, "mixtral")
    char_tokenizer().save_pretrained(path)
    passes: list[int] = []
    run = by_layers._Pass.run
    monkeypatch.setattr(
        by_layers._Pass, "run", lambda self, experts: (passes.append(1), run(self, experts))[1]
    )
    whole = calibrate(path, texts=TEXTS, sensitivity=False, **OPTIONS)
    assert not passes
    monkeypatch.setattr(memory, "available_memory", lambda: 1)
    layerwise = calibrate(path, texts=TEXTS, **OPTIONS)
    assert passes
    assert whole.fingerprint == layerwise.fingerprint
    assert whole.identity == layerwise.identity


def test_several_metrics_with_parameters(tmp_path: Path) -> None:
    """Several metrics come as a dict of tables, each with its parameters, in one walk."""
    path = save_tiny(tmp_path, "qwen3_moe")
    tables = calibrate(
        path, char_tokenizer(), TEXTS, low_memory=True, metric=["cka", "weights"],
        metric_parameters={"cka": {"kernel": "rbf"}}, **OPTIONS,
    )  # fmt: skip
    assert tables["cka"].metric_parameters["kernel"] == "rbf"
    assert (tables["cka"].calibration_tokens, tables["weights"].calibration_tokens) == (100, 0)
    alone = calibrate(path, low_memory=True, metric="weights", progress=False)
    assert alone.fingerprint == tables["weights"].fingerprint


def test_incomplete_and_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    """A missing tensor, a damaged or missing shard: each error names it, before any layer is computed."""
    path = save_tiny(tmp_path, "qwen3_moe")
    shards = sorted(path.glob("*.safetensors"))
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"cannot be read as safetensors"):
        calibrate(path, low_memory=True, texts=TEXTS, tokenizer=char_tokenizer(), **OPTIONS)
    shards[0].unlink()
    with pytest.raises(InputError, match=r"1 of \d+ weight files are missing: model-00001"):
        calibrate(path, low_memory=True, texts=TEXTS, tokenizer=char_tokenizer(), **OPTIONS)
    shards[0].write_bytes(whole)
    drop(path, "layers.1.post_attention_layernorm")
    with pytest.raises(InputError, match=r"1 weight .*: model\.layers\.1\.post_attention_layernorm\.weight"):
        calibrate(path, low_memory=True, texts=TEXTS, tokenizer=char_tokenizer(), **OPTIONS)


def test_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    """A quantized checkpoint is refused with the way out."""
    path = save_tiny(tmp_path, "qwen3_moe")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8"}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=r"--engine vllm.*calibrate the unquantized checkpoint"):
        calibrate(path, low_memory=True, texts=TEXTS, tokenizer=char_tokenizer(), **OPTIONS)


def test_missing_texts_are_named(tmp_path: Path) -> None:
    """Without texts the error comes before any weight is read."""
    with pytest.raises(DataError, match="texts: expected texts, because low_memory is set"):
        calibrate(save_tiny(tmp_path, "qwen3_moe"), low_memory=True, tokenizer=char_tokenizer(), **OPTIONS)
