"""How often each expert was chosen and ran: counted if asked for, and only then."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.errors import ConfigError, InputError
from sere.integrations.transformers import hooks
from sere.policies import Oea
from tests.support.decoding import decode, prefilled, prompts, random_table, step
from tests.support.expert_counts import RecordedRouter


def recorded(handle: integration.Handle) -> list[RecordedRouter]:
    """Count beside each layer's router in plain loops."""
    routers = []
    for layer in handle._guard.layers:
        layer.router = RecordedRouter(layer.router, layer.shape.num_experts)  # type: ignore[attr-defined]
        routers.append(layer.router)  # type: ignore[attr-defined]
    return routers


def found(handle: integration.Handle) -> list[list[list[int]]]:
    """The counts of all layers, chosen and ran."""
    return [[list(layer.chosen), list(layer.ran)] for layer in handle.expert_counts()]


@pytest.mark.parametrize("policy", [None, Oea(1)], ids=["sere", "oea"])
def test_counts_are_those_of_plain_loops(model: PreTrainedModel, policy: Any) -> None:
    """In each layer, over the decode steps of a text: the router's choice, and what ran in its place."""
    table = {} if policy else {"table": random_table(model), "select_top_k": 1}
    with integration.apply(model, policy=policy, count_experts=True, **table) as handle:
        routers = recorded(handle)
        decode(model, prompts())
        assert found(handle) == [router.found for router in routers]
        stats = handle.stats()
    for layer, one in zip(handle.expert_counts(), stats, strict=True):
        assert (layer.index, layer.name) == (one.index, one.name)
        assert sum(layer.chosen) == 5 * 6 * 4
        assert layer.chosen != layer.ran


def test_padding_is_not_counted_and_kept_rows_are(model: PreTrainedModel) -> None:
    """A finished row uses no expert; a row that keeps its experts uses what it chose."""
    handle = integration.apply(model, random_table(model), select_top_k=1, count_experts=True)
    routers = recorded(handle)
    handle.row_budgets = [1, 4, -1]
    step(model, torch.tensor([[8], [9], [10]]), prefilled(model, prompts(3)))
    assert found(handle) == [router.found for router in routers]
    assert [sum(layer.chosen) for layer in handle.expert_counts()] == [2 * 4] * 2


def test_steps_that_are_left_alone_are_not_counted(model: PreTrainedModel) -> None:
    """A prompt, and a step of one row, count no expert, as they count in no other statistic."""
    handle = integration.apply(model, random_table(model), select_top_k=1, count_experts=True)
    cache = prefilled(model, prompts(1))
    step(model, torch.tensor([[8]]), cache)
    assert sum(map(sum, (*found(handle)[0], *found(handle)[1]))) == 0
    handle.counts_all = True
    step(model, torch.tensor([[8]]), cache)
    assert [sum(layer.ran) for layer in handle.expert_counts()] == [4, 4]


def test_reset_removal_and_copies(model: PreTrainedModel) -> None:
    """Counts are set to zero with the other statistics, stay after removal, and move with their layer."""
    with integration.apply(model, random_table(model), select_top_k=1, count_experts=True) as handle:
        tensors = [layer.experts for layer in handle._guard.layers]
        decode(model, prompts())
        before = handle.expert_counts()
        handle._guard.layers[0]._move(torch.device("cpu"))  # type: ignore[attr-defined]
        assert handle.expert_counts() == before
        handle.reset_stats()
        assert not any(layer.chosen[e] + layer.ran[e] for layer in handle.expert_counts() for e in range(16))
        decode(model, prompts())
        assert handle.expert_counts() == before
        assert handle._guard.layers[1].experts is tensors[1]
    assert handle.expert_counts() == before
    assert copy.deepcopy(handle).expert_counts() == before


def test_off_means_no_tensor_and_no_operation(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default nothing is counted; who asks is told how to switch it on."""
    monkeypatch.setattr(hooks, "route_counted", None)
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        decode(model, prompts())
        assert [layer.experts for layer in handle._guard.layers] == [None, None]
        with pytest.raises(
            InputError, match=r"does not; call sere\.apply\(model, count_experts=True, \.\.\.\)"
        ):
            handle.expert_counts()
        handle.reset_stats()


def test_it_is_a_switch(model: PreTrainedModel) -> None:
    """Anything but true or false is refused before the model is touched."""
    with pytest.raises(ConfigError, match="count_experts: expected true or false, got 'yes'"):
        integration.apply(model, random_table(model), count_experts="yes")  # type: ignore[arg-type]
