"""What these tests share: a random table of a model, and short deterministic decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from sere.integrations.transformers.inputs import cache_argument
from sere.similarity.layer import LayerSimilarity
from sere.structure import find_experts, identify
from sere.table import SimilarityTable


def random_table(model: PreTrainedModel) -> SimilarityTable:
    """A table of the right shape whose similarities are random: any choice will do here."""
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for layer in find_experts(model):
        similarity = torch.rand(layer.num_experts, layer.num_experts, generator=generator)
        layers[layer.index] = LayerSimilarity(similarity.fill_diagonal_(1))
    return SimilarityTable(layers=layers, identity=identify(model), metric="frobenius")


def prompts(rows: int = 6, length: int = 5) -> Tensor:
    """Random tokens, ``[rows, length]``, none of them special."""
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(2))


def decode(model: PreTrainedModel, tokens: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Generate six tokens: the sequences, and the logits of each step, ``[6, rows, vocabulary]``."""
    options = {"max_new_tokens": 6, "do_sample": False} | options
    result = model.generate(tokens, output_logits=True, return_dict_in_generate=True, **options)
    return result.sequences, torch.stack(result.logits)


def hook_count(model: PreTrainedModel) -> int:
    """Forward hooks of every kind on every module."""
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def prefilled(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None) -> DynamicCache:
    """The cache after a prompt."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens, attention_mask=mask, **cache_argument(model, cache))
    return cache


def step(model: PreTrainedModel, tokens: Tensor, cache: DynamicCache, **inputs: Any) -> Tensor:
    """The logits of one decode step."""
    with torch.no_grad():
        logits: Tensor = model(tokens, **cache_argument(model, cache), **inputs).logits
    return logits


def recorded(model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Record the ids and weights that the first experts module runs on, call by call."""
    calls: list[tuple[Tensor, Tensor]] = []
    module = find_experts(model)[0].module
    forward = type(module).forward

    def record(*args: Any) -> Tensor:
        calls.append((args[1].clone(), args[2].clone()))
        return forward(module, *args)

    module.forward = record
    return calls
