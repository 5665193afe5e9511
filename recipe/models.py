"""The dense model, and the MoE model that is upcycled from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from recipe.data import Batch
from recipe.settings import Settings

Dense: TypeAlias = Qwen3ForCausalLM | Qwen2ForCausalLM
Moe: TypeAlias = Qwen3MoeForCausalLM | Qwen2MoeForCausalLM


def _shape(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_dim,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
        "initializer_range": 0.05,
    }


def dense_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Dense:
    """Return a new dense model; its FFN is as wide as a token's experts together."""
    torch.manual_seed(settings.seed)
    shape = {"intermediate_size": settings.dense_width, **_shape(settings, tokenizer)}
    if settings.family == "qwen2_moe":
        return Qwen2ForCausalLM(Qwen2Config(**shape))
    return Qwen3ForCausalLM(Qwen3Config(**shape))


def moe_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Moe:
    """Return a new MoE model."""
    torch.manual_seed(settings.seed)
    shape = {
        "intermediate_size": settings.dense_width,
        "moe_intermediate_size": settings.expert_width,
        "num_experts": settings.experts,
        "num_experts_per_tok": settings.top_k,
        "router_aux_loss_coef": settings.balance,
        **_shape(settings, tokenizer),
    }
    if settings.family == "qwen2_moe":
        return Qwen2MoeForCausalLM(
            Qwen2MoeConfig(
                norm_topk_prob=False, shared_expert_intermediate_size=settings.shared_width, **shape
            )
        )
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(norm_topk_prob=True, **shape))


@torch.no_grad()
def ffn_inputs(dense: Dense, batches: Sequence[Batch]) -> list[Tensor]:
    """Return what each layer's FFN gets on the real tokens of the batches, ``[T, H]`` per layer."""
    seen: list[list[Tensor]] = [[] for _ in dense.model.layers]

    def keep(mine: list[Tensor]) -> Callable[..., None]:
        return lambda _module, args: mine.append(args[0])

    pairs = zip(dense.model.layers, seen, strict=True)
    hooks = [layer.mlp.register_forward_pre_hook(keep(mine)) for layer, mine in pairs]
    for batch in batches:
        dense(input_ids=batch.inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [torch.cat([x[batch.real] for x, batch in zip(mine, batches, strict=True)]) for mine in seen]


def upcycle(dense: Dense, moe: Moe, settings: Settings, batches: Sequence[Batch]) -> None:
    """Fill ``moe`` from ``dense``: each expert is a slice of the FFN, part of its units drawn again.

    Expert ``c * K + k`` is copy c of slice k. The K slices of a copy share a router row up to a jitter
    (virtual groups), so a token's K experts are at first the K slices of one copy: the dense FFN. Their
    gates are then nearly equal, so the down projection is divided by the mean gate: multiplied by K where
    gates sum to 1. A shared expert gets the FFN's first units, and twice their down projection, because its
    own gate is at first 1/2. The shared rows are
    random directions of the whitened FFN inputs of ``batches``, at right angles to their mean: with plain
    random rows the mean decides, and one copy gets nearly all tokens (seen, and not undone by training).

    Source: virtual-group initialization of fine-grained upcycling (arXiv 2410.07524).
    """
    rng = torch.Generator().manual_seed(settings.seed)
    state = {name: value for name, value in dense.state_dict().items() if ".mlp." not in name}
    missing, unexpected = moe.load_state_dict(state, strict=False)
    if unexpected or any(".mlp." not in name for name in missing):
        raise RuntimeError(f"dense and MoE models differ: missing {missing}, unexpected {unexpected}")
    inputs = ffn_inputs(dense, batches)
    with torch.no_grad():
        for old, new, seen in zip(dense.model.layers, moe.model.layers, inputs, strict=True):
            ffn, block = old.mlp, new.mlp
            copies = settings.experts // settings.top_k
            shared, units = settings.shared_width, range(settings.experts)
            gate = _slices(ffn.gate_proj.weight[shared:], copies, settings)
            up = _slices(ffn.up_proj.weight[shared:], copies, settings)
            down = _slices(ffn.down_proj.weight.t()[shared:], copies, settings)
            for expert in units:
                count = round(settings.fresh_rows * settings.expert_width)
                fresh = torch.randperm(settings.expert_width, generator=rng)[:count]
                for part in (gate[expert], up[expert], down[expert]):
                    std = part.std()
                    part += settings.noise * std * torch.randn(part.shape, generator=rng)
                    part[fresh] = std * torch.randn(count, part.shape[1], generator=rng)
            router = _router_rows(seen, copies, settings, rng)
            block.gate.weight.copy_(router)
            block.experts.gate_up_proj.copy_(torch.cat([gate, up], dim=1))
            block.experts.down_proj.copy_(down.transpose(1, 2) / _mean_gate(router, seen, settings))
            if shared:
                block.shared_expert.gate_proj.weight.copy_(ffn.gate_proj.weight[:shared])
                block.shared_expert.up_proj.weight.copy_(ffn.up_proj.weight[:shared])
                block.shared_expert.down_proj.weight.copy_(2 * ffn.down_proj.weight[:, :shared])
                block.shared_expert_gate.weight.zero_()


def _mean_gate(router: Tensor, seen: Tensor, settings: Settings) -> float:
    """Return the mean gate of a slot on ``seen``."""
    if settings.family == "qwen3_moe":
        return 1 / settings.top_k
    return float((seen @ router.T).softmax(-1).topk(settings.top_k).values.mean())


def _slices(weight: Tensor, copies: int, settings: Settings) -> Tensor:
    """Return ``weight [K * F, H]`` as ``[copies * K, F, H]``."""
    return weight.reshape(settings.top_k, settings.expert_width, -1).repeat(copies, 1, 1).clone()


def _router_rows(seen: Tensor, copies: int, settings: Settings, rng: torch.Generator) -> Tensor:
    """Return the router ``[copies * K, H]``; on ``seen`` its logits have zero mean and the set deviations."""
    mean = seen.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(seen.T))
    whiten = vectors @ torch.diag((values + 1e-2 * values.mean()).rsqrt()) @ vectors.T

    def rows(count: int, std: float) -> Tensor:
        drawn = torch.randn(count, settings.hidden_size, generator=rng) @ whiten
        drawn -= (drawn @ mean)[:, None] * mean / mean.square().sum()
        scaled: Tensor = drawn * (std / (seen @ drawn.T).std(0)[:, None])
        return scaled

    shared = rows(copies, settings.router_std).repeat_interleave(settings.top_k, dim=0)
    return shared + rows(len(shared), settings.router_jitter)
