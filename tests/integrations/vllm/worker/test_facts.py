"""Bytes of the weights that every step reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from sere.integrations.vllm.worker.facts import rest_bytes


class VocabParallelEmbedding(nn.Embedding):
    """vLLM's, by its name."""


class ParallelLMHead(VocabParallelEmbedding):
    """vLLM's, by its name."""


class Model(nn.Module):
    """An embedding of 40 numbers, a norm of 4, routed experts of 32, and an output layer."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embed = VocabParallelEmbedding(10, 4)
        self.norm = nn.LayerNorm(4, bias=False)
        self.experts = nn.Linear(4, 8, bias=False)
        self.head = ParallelLMHead(10, 4)
        if tied:
            self.head.weight = self.embed.weight


@pytest.mark.parametrize("tied", [False, True])
def test_neither_experts_nor_input_embeddings(tied: bool) -> None:
    """The output layer is read whole, whether it shares its weights with the input or not."""
    model = Model(tied=tied)
    layers: Any = [SimpleNamespace(runner=SimpleNamespace(routed_experts=model.experts))]
    assert rest_bytes(model, layers) == 4 * (4 + 40)


def test_what_cannot_be_told() -> None:
    """Before vLLM 0.24 no module holds the routed experts alone; a stand-in for a model has no weights."""
    layers: Any = [SimpleNamespace(runner=SimpleNamespace())]
    assert rest_bytes(Model(tied=False), layers) is None
    assert rest_bytes(None, []) is None
