"""Which of vLLM's routers have scores for the rules that need them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.worker.router_scores import CHOOSE_BY_LOGITS, check_scores
from sere.policies.oea import Oea
from sere.policies.topk import TopK
from tests.support.vllm.standins import CPUUnquantizedExperts, prepared


def router(kind: str, **attributes: Any) -> Any:
    return type(kind, (SimpleNamespace,), {})(**attributes)


@pytest.mark.parametrize("kind", sorted(CHOOSE_BY_LOGITS))
def test_routers_that_choose_by_their_logits(kind: str) -> None:
    """Top-k with or without bias, in groups or with zero experts, is accepted."""
    check_scores("oea", "layer", router(kind, _hash_indices_table=None, custom_routing_function=None))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (router("RoutingSimulatorRouter"), "RoutingSimulatorRouter is not known to choose by its logits"),
        (
            router("CPURouter", _hash_indices_table=0),
            "this layer takes its experts from a table of token ids",
        ),
        (
            router("CPURouter", custom_routing_function=len),
            "the model's own function len chooses the experts",
        ),
    ],
    ids=["simulated", "hash", "custom"],
)
def test_routers_without_scores(found: Any, text: str) -> None:
    """What may choose by something else is refused by layer, rule and reason, with what to do."""
    with pytest.raises(
        UnsupportedEngine, match=f"layers.3.experts: oea needs .*, but {text}; use a rule"
    ) as e:
        check_scores("oea", "model.layers.3.experts", found)
    assert "--engine transformers" in str(e.value)


def test_refused_rule_leaves_the_engine_as_it_was(any_table: Any) -> None:
    """A rule that one layer refuses is bound to none; kernel and compiled code are checked as well."""
    state = prepared(any_table, {}, torch.nn.Module, kernel=CPUUnquantizedExperts())
    own = [layer.router for layer in state.layers.values()]
    with pytest.raises(UnsupportedEngine, match="Router is not known to choose"), state.routed_by(Oea(1)):
        pass
    assert [layer.router for layer in state.layers.values()] == own
    state.kernel = "SomeExperts"
    with (
        pytest.raises(UnsupportedEngine, match="topk: the expert kernel SomeExperts"),
        state.routed_by(TopK(1)),
    ):
        pass
    state.vllm_config.compilation_config.mode = 3
    with (
        pytest.raises(UnsupportedEngine, match="topk: this engine runs compiled code"),
        state.routed_by(TopK(1)),
    ):
        pass
