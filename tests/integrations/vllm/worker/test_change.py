"""Settings that are changed while the engine serves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import ConfigError
from sere.integrations.vllm.tiers import PROTECTED
from sere.integrations.vllm.worker import change
from sere.integrations.vllm.worker.request_book import RequestBook
from sere.integrations.vllm.worker.row_budgets import RowBudgets
from sere.policies.topk import TopK
from tests.support.vllm.standins import CPUUnquantizedExperts, new, prepared, step

LARGE = (1 << 31) - 1


def test_large_s_is_exact(any_table: Any) -> None:
    """The largest S that the settings take, at the start or live, protects the rows; none overflows."""
    known = prepared(any_table, {}, torch.nn.Module, select_top_k=2)
    assert change.change(known, {"select_top_k": LARGE})["select_top_k"] == LARGE
    book = RequestBook()
    book.update(step(news=(new("a", 3),)))
    found = book.budgets(step(cached={"a": 3}), ["a"], np.array([1]), known.config.select_top_k)
    assert found.budgets.tolist() == [PROTECTED]
    assert not RowBudgets(2, torch.device("cpu"), may_skip=True).announce(found.budgets)


def test_larger_s_is_refused(any_table: Any) -> None:
    """An S or a floor that no int32 holds is refused at the start and live, where nothing changes."""
    text = f"expected an integer of at most {LARGE}, got {LARGE + 1}"
    for name in ("select_top_k", "min_active"):
        with pytest.raises(ConfigError, match=f"{name}: {text}"):
            RerouteConfig.from_mapping({"select_top_k": 1} | {name: LARGE + 1})
    known = prepared(any_table, {}, torch.nn.Module, select_top_k=2)
    assert text in change.change(known, {"select_top_k": LARGE + 1})["error"]
    assert known.config.select_top_k == 2


def test_kept_experts_of_layers_elsewhere(any_table: Any) -> None:
    """A live ``keep`` is checked for layers of other processes too, so that all ranks refuse it alike."""
    known = prepared(any_table, {}, torch.nn.Module, select_top_k=2)
    for keep, text in (
        ({1: [3, 16]}, "keep: layer 1 has the experts 0 to 15, got 16"),
        ({4: [3]}, "keep: layer 4 has no similarities; the table has the layers 0, 1"),
    ):
        assert change.change(known, {"keep": keep}) == {"error": text}
        assert not known.config.keep


def test_new_settings_reach_every_tensor_of_a_layer(any_table: Any) -> None:
    """A new threshold and keep-list are written over all that a router reads, at the same addresses."""
    after = {"threshold": 0.7, "keep": {0: (3,)}}
    state = prepared(any_table, {}, torch.nn.Module, threshold=0.2)
    wanted = prepared(any_table, {}, torch.nn.Module, **after)
    tensors = [layer.router.tensors() for layer in state.layers.values() if layer.router is not None]
    addresses = [{name: tensor.data_ptr() for name, tensor in named.items()} for named in tensors]
    assert "error" not in change.change(state, after)
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
        assert state.policy.default_budget == 2
        assert state.report()["settings"] == {"policy": "topk", "select_top_k": 2}
        assert change.change(state, {"select_top_k": 3, "threshold": 0.5})["select_top_k"] == 3
        assert state.policy.default_budget == 2
    assert [layer.router for layer in state.layers.values()] == own
    assert (state.policy.default_budget, state.report()["settings"]["threshold"]) == (3, 0.5)
