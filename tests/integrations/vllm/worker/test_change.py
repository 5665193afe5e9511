"""Settings that are changed while the engine serves."""

from __future__ import annotations

from types import SimpleNamespace
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
from sere.reroute import prepare_layer
from sere.similarity.layer import LayerSimilarity
from tests.support.vllm.standins import new, step

LARGE = (1 << 31) - 1


def state(**options: Any) -> Any:
    """A state of no layers: settings, a table of two layers of 16 experts, counts."""
    return SimpleNamespace(
        config=RerouteConfig(select_top_k=2, **options),
        enabled=True,
        layers={},
        table=SimpleNamespace(num_experts=16, layers=dict.fromkeys((0, 1), SimpleNamespace(num_experts=16))),
        settings_changed=lambda: None,
        speaks=False,
    )


def test_large_s_is_exact() -> None:
    """The largest S that the settings take, at the start or live, protects the rows; none overflows."""
    known = state()
    assert change.change(known, {"select_top_k": LARGE})["select_top_k"] == LARGE
    book = RequestBook()
    book.update(step(news=(new("a", 3),)))
    found = book.budgets(step(cached={"a": 3}), ["a"], np.array([1]), known.config.select_top_k)
    assert found.budgets.tolist() == [PROTECTED]
    assert not RowBudgets(2, torch.device("cpu"), may_skip=True).announce(found.budgets)


def test_larger_s_is_refused() -> None:
    """An S or a floor that no int32 holds is refused at the start and live, where nothing changes."""
    text = f"expected an integer of at most {LARGE}, got {LARGE + 1}"
    for name in ("select_top_k", "min_active"):
        with pytest.raises(ConfigError, match=f"{name}: {text}"):
            RerouteConfig.from_mapping({"select_top_k": 1} | {name: LARGE + 1})
    known = state()
    assert text in change.change(known, {"select_top_k": LARGE + 1})["error"]
    assert known.config.select_top_k == 2


def test_kept_experts_of_layers_elsewhere() -> None:
    """A live ``keep`` is checked for layers of other processes too, so that all ranks refuse it alike."""
    known = state()
    for keep, text in (
        ({1: [3, 16]}, "keep: layer 1 has the experts 0 to 15, got 16"),
        ({4: [3]}, "keep: layer 4 has no similarities; the table has the layers 0, 1"),
    ):
        assert change.change(known, {"keep": keep}) == {"error": text}
        assert not known.config.keep


def test_new_settings_reach_every_tensor_of_a_layer() -> None:
    """A new threshold and keep-list are written over all that a backend reads, at the same addresses."""
    layer = LayerSimilarity(
        torch.rand(40, 40, generator=torch.Generator().manual_seed(0)).fill_diagonal_(1.0)
    )
    before, after = (
        RerouteConfig(select_top_k=1, threshold=0.2),
        RerouteConfig(select_top_k=1, threshold=0.7, keep={0: (3,)}),
    )
    prepared = prepare_layer(layer, before)
    expected = prepare_layer(layer, after, keep=(3,)).tensors()
    known: Any = SimpleNamespace(
        table=SimpleNamespace(layers={0: layer}), layers={0: SimpleNamespace(index=0, prepared=prepared)}
    )
    addresses = {name: tensor.data_ptr() for name, tensor in prepared.tensors().items()}
    change._update_layers(known, after)
    for name, tensor in prepared.tensors().items():
        assert torch.equal(tensor, expected[name]), name
    assert {name: tensor.data_ptr() for name, tensor in prepared.tensors().items()} == addresses
