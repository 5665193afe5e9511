"""Settings that are changed while the engine serves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import ConfigError
from sere.integrations.vllm.engine_stats import merge_answers
from sere.policies.topk import TopK
from tests.support.vllm.standins import NAMES, CPUUnquantizedExperts, SmallEngine, change, decode, prepared

LARGE = (1 << 31) - 1


def test_large_s_is_exact(any_table: Any) -> None:
    """The largest S that the settings take keeps all slots of the rows; none overflows.

    Its steps are left alone, but for those with a request that asked for a smaller S.
    """
    known = prepared(any_table, {}, torch.nn.Module, kernel=CPUUnquantizedExperts(), active_experts=0)
    assert change(known, {"select_top_k": LARGE})["select_top_k"] == LARGE
    engine = SmallEngine(known)
    decode(engine, 3)
    stats = merge_answers([known.report()])
    assert (stats.steps_rerouted, stats.skipped["protected"]) == (0, 3)
    engine.prompts("small", tier=3)
    engine.decode(NAMES[0], "small", steps=2)
    stats = merge_answers([known.report()])
    assert (stats.steps_rerouted, stats.skipped["protected"]) == (2, 3)
    for layer in stats.layers:
        assert layer.steps == 2
        assert layer.slots_rerouted == 1 / 8


@pytest.mark.parametrize("name", ["select_top_k", "active_experts"])
def test_larger_numbers_are_refused_at_the_start(name: str) -> None:
    """An S or an M that no int32 holds is refused."""
    with pytest.raises(ConfigError, match=f"{name}: expected an integer of at most {LARGE}, got {LARGE + 1}"):
        RerouteConfig.from_mapping({"select_top_k": 1} | {name: LARGE + 1})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"select_top_k": LARGE + 1}, f"expected an integer of at most {LARGE}, got {LARGE + 1}"),
        # Layers of other processes too, so that all ranks refuse it alike.
        ({"keep": {1: [3, 16]}}, "keep: layer 1 has the experts 0 to 15, got 16"),
        ({"keep": {4: [3]}}, "keep: layer 4 has no similarities; the table has the layers 0, 1"),
    ],
    ids=["S", "expert", "layer"],
)
def test_refused_changes(any_table: Any, changes: dict[str, Any], text: str) -> None:
    """A change that is refused says why and changes nothing."""
    known = prepared(any_table, {}, torch.nn.Module, select_top_k=2)
    before = known.config
    with pytest.raises(ConfigError) as refused:
        change(known, changes)
    assert text in str(refused.value)
    assert known.config == before


def test_new_settings_reach_every_tensor_of_a_layer(any_table: Any) -> None:
    """A new threshold and keep-list are written over all that a router reads, at the same addresses."""
    after = {"threshold": 0.7, "keep": {0: (3,)}}
    state = prepared(any_table, {}, torch.nn.Module, threshold=0.2)
    wanted = prepared(any_table, {}, torch.nn.Module, **after)
    tensors = [layer.router.tensors() for layer in state.layers.values() if layer.router is not None]
    addresses = [{name: tensor.data_ptr() for name, tensor in named.items()} for named in tensors]
    change(state, after)
    for index, named in enumerate(tensors):
        router = wanted.layers[index].router
        assert router is not None
        for name, tensor in router.tensors().items():
            assert torch.equal(named[name], tensor), name
    assert [{name: tensor.data_ptr() for name, tensor in named.items()} for named in tensors] == addresses


def test_other_rules_leave_what_can_be_changed(any_table: Any) -> None:
    """While another rule routes, changes are kept for the engine's own, which routes again afterward."""
    state = prepared(any_table, {}, torch.nn.Module, kernel=CPUUnquantizedExperts())
    own = [layer.router for layer in state.layers.values()]
    with state.routed_by(TopK(2)):
        assert state.report()["settings"] == {"policy": "topk", "select_top_k": 2}
        assert change(state, {"select_top_k": 3, "threshold": 0.5})["select_top_k"] == 3
        assert state.report()["settings"] == {"policy": "topk", "select_top_k": 2}
    assert [layer.router for layer in state.layers.values()] == own
    settings = state.report()["settings"]
    assert (settings["select_top_k"], settings["threshold"]) == (3, 0.5)
