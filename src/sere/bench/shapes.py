"""Layer shapes of published models, for timing with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sere.errors import InputError, did_you_mean

# Random weights of the usual 0.02 make all tokens choose the same few experts; 0.04 spreads them like text.
WEIGHT_STD = 0.04


@dataclass(frozen=True, slots=True)
class Shape:
    """The architecture of a published model.

    Attributes:
        model_type: Transformers' name of the architecture.
        layers: Layers of the published model.
        vocab_size: Its vocabulary.
        settings: What else its config sets.
    """

    model_type: str
    layers: int
    vocab_size: int
    settings: Mapping[str, Any]


_QWEN2_ATTENTION = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16}

SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "qwen3-30b-a3b": Shape("qwen3_moe", 48, 151936, {
            "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
            "norm_topk_prob": True,
        }),
        "qwen1.5-moe-a2.7b": Shape("qwen2_moe", 24, 151936, _QWEN2_ATTENTION | {
            "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "norm_topk_prob": False,
        }),
        "deepseek-v2-lite": Shape("deepseek_v2", 27, 102400, _QWEN2_ATTENTION | {
            "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2,
            "moe_intermediate_size": 1408, "first_k_dense_replace": 0, "norm_topk_prob": False,
            "topk_method": "greedy", "n_group": 1, "topk_group": 1,
        }),
        "mixtral-8x7b": Shape("mixtral", 32, 32000, {
            "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
            "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2,
        }),
        "olmoe-1b-7b": Shape("olmoe", 16, 50304, _QWEN2_ATTENTION | {
            "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False,
        }),
        "tiny": Shape("qwen3_moe", 2, 512, {
            "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 32, "norm_topk_prob": True,
        }),
    }
)  # fmt: skip
"""By the name one types; ``tiny`` is for trying the benchmark itself."""


def shape_config(name: str, *, layers: int | None = None) -> Any:
    """Return a Transformers config with a published model's layers, fewer of them if wanted.

    The vocabulary is cut in the same proportion as the layers, so that the output head keeps its share
    of a decode step.

    Args:
        name: One of ``SHAPES``.
        layers: Number of layers, at least 1; all if None.

    Raises:
        InputError: The name is unknown or ``layers`` is out of range.
    """
    from transformers import AutoConfig

    if name not in SHAPES:
        raise InputError(f"shape: unknown {name!r}{did_you_mean(name, SHAPES)}")
    shape = SHAPES[name]
    count = shape.layers if layers is None else layers
    if not 1 <= count <= shape.layers:
        raise InputError(f"layers: expected 1 to {shape.layers} for {name}, got {count}")
    vocab_size = max(256, round(shape.vocab_size * count / shape.layers / 64) * 64)
    return AutoConfig.for_model(
        shape.model_type,
        **shape.settings,
        num_hidden_layers=count,
        vocab_size=vocab_size,
        initializer_range=WEIGHT_STD,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
