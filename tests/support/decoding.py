"""What these tests share: a random table of a model, and short deterministic decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

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
