"""Routers that are not found, or show no scores, are named."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.errors import UnsupportedModel
from sere.integrations.transformers.routers import scores_in
from sere.policies import Oea, TopK
from tests.support.decoding import hook_count


def test_a_router_that_is_not_there_is_named(model: PreTrainedModel) -> None:
    """A policy that needs scores says which layer lacks a router, and leaves no hook on the others."""
    block = model.model.layers[1].mlp
    block.gate = nn.Identity()
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.mlp\.experts: this policy needs the router"):
        integration.apply(model, policy=Oea(1))
    assert hook_count(model) == 0
    integration.apply(model, policy=TopK(1)).remove()


def test_a_router_that_shows_no_scores_is_named() -> None:
    """Ids and K weights are not scores of all experts."""
    with pytest.raises(
        UnsupportedModel, match=r"x: this policy needs .* 8 experts, but the router returns no"
    ):
        scores_in((torch.zeros(3, 2), torch.zeros(3, 8, dtype=torch.long)), 8, "x")
