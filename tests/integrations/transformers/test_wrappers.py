"""Models within something else: data parallelism, modules of the user's own, and parts of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.errors import UnsupportedModel
from sere.structure import find_experts
from sere.wrappers import callers, inner_model
from tests.support.decoding import decode, hook_count, prompts, random_table
from tests.support.tiny import tiny_model


class Holder(nn.Module):
    """A module of the user's own around a model."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize(
    "wrap",
    [Holder, nn.DataParallel, lambda m: nn.ModuleList([m]), lambda m: m.model],
    ids=["own", "parallel", "list", "decoder"],
)
def test_what_holds_a_model_or_is_a_part_of_it(model: PreTrainedModel, wrap: Any) -> None:
    """The hooks go to the model within, or to the decoder that was given; the tokens are the same."""
    table = random_table(model)
    with integration.apply(model, table, select_top_k=1):
        expected, _ = decode(model, prompts())
    with integration.apply(wrap(model), table, select_top_k=1) as handle:
        assert torch.equal(decode(model, prompts())[0], expected)
        assert handle.activity().calls == 6
    assert hook_count(model) == 0


def test_two_models_in_one_module_are_refused(model: PreTrainedModel) -> None:
    """The text says to pass the one that is meant."""
    pair = nn.ModuleList([model, tiny_model("qwen3_moe")])
    assert inner_model(pair) is pair
    with pytest.raises(UnsupportedModel, match="are both layer"):
        find_experts(pair)


def test_the_modules_that_are_called_with_tokens(model: PreTrainedModel) -> None:
    """From the model down to its decoder; one layer with experts is still within the same decoder."""
    names = [layer.name for layer in find_experts(model)]
    assert callers(model, names) == [model, model.model]
    assert callers(model, names[:1]) == [model, model.model]
    assert callers(model.model, ["layers.0.mlp.experts", "layers.1.mlp.experts"]) == [model.model]
    plain = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2)])])
    assert callers(plain, ["0.0"]) == [plain]
