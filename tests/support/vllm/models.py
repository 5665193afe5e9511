"""Tiny random checkpoints that vLLM can serve on a CPU, each with a random table beside its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sere.bench.target import random_table
from tests.support.tiny import tiny_model

# vLLM's CPU attention wants heads of at least 32, its MLA kernel DeepSeek's own latent sizes.
_COMMON: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 64,
    "moe_intermediate_size": 32, "head_dim": 32, "max_position_embeddings": 512,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_MLA: dict[str, Any] = {
    "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64,
    "v_head_dim": 64, "head_dim": 64,
}  # fmt: skip
# Where the size of a head is what the heads leave of the hidden size.
_FEW_HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}
_OWN: Mapping[str, dict[str, Any]] = {
    "qwen3_moe": {},
    "qwen2_moe": _FEW_HEADS | {"shared_expert_intermediate_size": 32},
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "mixtral": {},
    "olmoe": _FEW_HEADS,
    "gpt_oss": {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": False, "original_max_position_embeddings": 128,
        },
    },
    "granitemoe": _FEW_HEADS,
    # vLLM leaves a bias that the checkpoint lacks at what was in memory.
    "phimoe": {"attention_bias": True, "lm_head_bias": True},
    "glm4_moe": {},
    "ernie4_5_moe": {},
    "qwen3_next": {"linear_key_head_dim": 128, "linear_value_head_dim": 128},
}  # fmt: skip
# Further ones, which are calibrated only.
_CALIBRATED: Mapping[str, dict[str, Any]] = {
    "granitemoeshared": _FEW_HEADS | {"shared_intermediate_size": 32},
    "granitemoehybrid": _FEW_HEADS | {"shared_intermediate_size": 32, "position_embedding_type": "rope"},
}
# What Transformers drops or names otherwise when it writes a config that vLLM then reads.
_WRITTEN: Mapping[str, dict[str, Any]] = {
    "deepseek_v3": {"topk_method": "noaux_tc"},
    "phimoe": {"architectures": ["PhiMoEForCausalLM"]},
}

_8_BITS: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
_INT8: dict[str, Any] = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
    "ignore": ["re:.*self_attn.*", "re:.*gate$", "lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"], "output_activations": None,
            "weights": _8_BITS | {"strategy": "channel", "dynamic": False},
            "input_activations": _8_BITS | {"strategy": "token", "dynamic": True},
        },
    },
}  # fmt: skip

ARCHITECTURES: tuple[str, ...] = tuple(_OWN)


def save_model(folder: Path, name: str = "qwen3_moe", **overrides: Any) -> Path:
    """Save a tiny model as ``folder/name`` and its table as ``folder/name.sere.safetensors``."""
    path = folder / name
    model = tiny_model(name, **(_COMMON | {**_OWN, **_CALIBRATED}[name] | overrides))
    model.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | _WRITTEN.get(name, {})))
    random_table(model).save(table_of(path))
    return path


def quantize_experts(path: Path) -> Path:
    """Quantize the experts of a saved model to INT8, as compressed-tensors stores them (W8A8, dynamic).

    Returns:
        A copy, beside it, with the weights that the quantized ones stand for.
    """
    copy = Path(shutil.copytree(path, path.with_name(f"{path.name}-dequantized")))
    quantized, rounded = {}, {}
    for name, weight in load_file(path / "model.safetensors").items():
        quantized[name] = rounded[name] = weight
        if ".experts." in name:
            scale = weight.abs().amax(dim=1, keepdim=True).float() / 127
            whole = (weight / scale).round()
            quantized |= {name: whole.to(torch.int8), name.replace(".weight", ".weight_scale"): scale}
            rounded[name] = whole * scale
    save_file(quantized, path / "model.safetensors", metadata={"format": "pt"})
    save_file(rounded, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": _INT8}))
    return copy


def table_of(path: Path) -> Path:
    """Return where `save_model` put a table: not in the folder, whose files a plain vLLM would load."""
    return path.with_name(f"{path.name}.sere.safetensors")
