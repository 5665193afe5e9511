"""Tiny random models of text and images, whose language model is a Mixture of Experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.support.tiny import COMMON

_TEXT: dict[str, Any] = COMMON | {"num_experts": 16}
_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 4, "patch_size": 4,
    "out_hidden_size": 32,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_OWN: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3_vl_moe": ({"rope_parameters": _ROPE}, {"deepstack_visual_indexes": [0]}),
    "qwen3_5_moe": (
        {
            "layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 16,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "rope_parameters": _ROPE | {"partial_rotary_factor": 1.0},
        },
        {},
    ),
}  # fmt: skip


def tiny_composite(name: str, **overrides: Any) -> PreTrainedModel:
    """Build a tiny random model of text and images, float32, on the CPU, in eval mode.

    Args:
        name: ``qwen3_vl_moe`` (for which Transformers has no causal class) or ``qwen3_5_moe`` (for which it
            has one of the text model alone).
        **overrides: Values of the text config to set differently.
    """
    text, vision = _OWN[name]
    config = AutoConfig.for_model(
        name, text_config=_TEXT | text | overrides, vision_config=_VISION | vision, tie_word_embeddings=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = None
    return model.eval()
