"""Tiny random Mixture-of-Experts models of many architectures, built from their configs without a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

# 16 experts and 4 slots: enough that a batch of 4 rows has secondary experts, and K < E leaves some idle.
COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 128,
    # Larger than a real model's, so that a tiny one does not repeat one token for ever.
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_MLA: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
_GROUPED: dict[str, Any] = {"n_routed_experts": 16, "n_shared_experts": 1, "n_group": 4, "topk_group": 2}
_OWN: Mapping[str, dict[str, Any]] = {
    "qwen2_moe": {"num_experts": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 16, "norm_topk_prob": True},
    "deepseek_v2": _MLA | _GROUPED | {"topk_method": "group_limited_greedy", "first_k_dense_replace": 1,
                                      "num_hidden_layers": 3},
    "deepseek_v3": _MLA | _GROUPED | {"first_k_dense_replace": 1, "num_hidden_layers": 3},
    "mixtral": {"num_local_experts": 16},
    "olmoe": {"num_experts": 16},
    "gpt_oss": {"num_local_experts": 16, "sliding_window": 16,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "granitemoe": {"num_local_experts": 16},
    # Its router picks two experts, whatever the config says.
    "phimoe": {"num_local_experts": 16, "num_experts_per_tok": 2},
    "glm4_moe": _GROUPED | {"first_k_dense_replace": 1, "num_hidden_layers": 3},
    "ernie4_5_moe": {"moe_num_experts": 16, "moe_k": 4, "moe_num_shared_experts": 1, "num_hidden_layers": 3},
    "qwen3_next": {"num_experts": 16, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2,
                   "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                   "layer_types": ["linear_attention", "full_attention"]},
    "minimax_m2": {"num_local_experts": 16},
    "dbrx": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128,
             "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
             "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 16, "moe_top_k": 4, "hidden_size": 32}},
    # The last four ids are zero experts: they have no weights and pass the row through.
    "longcat_flash": _MLA | {"n_routed_experts": 16, "zero_expert_num": 4, "moe_topk": 4, "num_layers": 2,
                             "num_hidden_layers": 4, "ffn_hidden_size": 32, "expert_ffn_hidden_size": 16},
}  # fmt: skip

ARCHITECTURES: tuple[str, ...] = tuple(_OWN)

# Those that only calibration in vLLM is tried with, among the others of Transformers.
_FURTHER: Mapping[str, dict[str, Any]] = {
    "granitemoeshared": {"num_local_experts": 16},
    "granitemoehybrid": {"num_local_experts": 16, "layer_types": ["attention", "attention"]},
}


def tiny_config(name: str, **overrides: Any) -> Any:
    """Return the config of `tiny_model`."""
    return AutoConfig.for_model(name, **(COMMON | {**_OWN, **_FURTHER}[name] | overrides))


def tiny_model(name: str, **overrides: Any) -> PreTrainedModel:
    """Build a tiny random model, float32, on the CPU, in eval mode; the same weights at every call.

    Args:
        name: One of `ARCHITECTURES`, a Transformers model type.
        **overrides: Values of the config to set differently.
    """
    config = tiny_config(name, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _fill_routers(model)
    _spread_router_bias(model)
    model.generation_config.eos_token_id = None
    return model.eval()


def _fill_routers(model: PreTrainedModel) -> None:
    """Give routers that their class leaves at zero, as Ernie 4.5's, weights that choose by token."""
    for name, weight in model.named_parameters():
        if name.endswith("mlp.gate.weight") and not weight.is_meta and not weight.any():
            torch.nn.init.normal_(weight, std=0.5)


def _spread_router_bias(model: PreTrainedModel) -> None:
    """Give routers with a selection bias one that matters, so that selection and weight orders differ."""
    for name, buffer in (*model.named_buffers(), *model.named_parameters()):
        if name.endswith("e_score_correction_bias"):
            with torch.no_grad():
                buffer.copy_(torch.linspace(-0.2, 0.2, buffer.numel()).roll(5).view_as(buffer))


def uneven_model() -> PreTrainedModel:
    """Build a tiny model whose first layer has 16 experts and 4 slots, and whose second has 12 and 2."""
    model = tiny_model("qwen3_moe")
    model.model.layers[1] = tiny_model("qwen3_moe", num_experts=12, num_experts_per_tok=2).model.layers[1]
    return model


class Looping(nn.ModuleList):
    """Decoder layers that a model's forward pass runs three times over, as Inkling 2's loop does."""

    def __getitem__(self, index: Any) -> Any:
        """Return the layers of a slice three times."""
        found = super().__getitem__(index)
        return [*found] * 3 if isinstance(index, slice) else found
