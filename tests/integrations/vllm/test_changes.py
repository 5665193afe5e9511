"""A change of settings, checked on its own: what any server can say about it without asking its engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sere.errors import ConfigError
from sere.integrations.vllm.changes import ModelSize, check_changes

SIZE = ModelSize(layers=6, experts=16)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"keep": {"0": [*range(17)]}}, "a layer has at most 16 experts, got 17 ids"),
        ({"keep": {"0": [3, 16]}}, "expected expert ids from 0 to 15, got 16"),
        ({"keep": {"0": [10**30]}}, "expected expert ids from 0 to 15, got 1000"),
        ({"keep": {str(layer): [] for layer in range(7)}}, "keep: the model has 6 layers, got 7"),
        ({"layers": {str(layer): {} for layer in range(7)}}, "layers: the model has 6 layers, got 7"),
        ({"active_experts": {str(layer): 3 for layer in range(7)}}, "active_experts: the model has 6 layers"),
        ({"active_experts": [[row, 8] for row in range(1, 300)]}, "expected at most 256 points"),
        ({"active_experts": {"0": [[row, 8] for row in range(1, 300)]}}, "expected at most 256 points"),
        ({"active_experts": "all"}, "active_experts: expected a number of experts"),
        ({"threshold": "0.3"}, "threshold: expected a number of at least 0"),
        ({"threshold": float("nan")}, "threshold: expected a number of at least 0"),
        ({"threshold": 10**400}, "threshold: expected a number of at least 0"),
        ({"select_top_k": 2**31}, "select_top_k: expected an integer of at most"),
        ({"select_top_k": None}, "select_top_k: expected an integer of at least 1, got None"),
        ({"enabled": 1}, "enabled: expected true or false, got 1"),
        ({"tier": ["safe"]}, "tier: expected the name of one of the table's tiers"),
        ({"cap": True}, "'cap' cannot be changed while the engine runs"),
        ({"treshold": 1}, "did you mean 'threshold'?"),
    ],
    ids=["ids", "id", "large id", "kept layers", "layers", "M of layers", "points", "points of a layer", "M",
         "text", "nan", "huge", "S", "no S", "switch", "tier", "name", "misspelled"],
)  # fmt: skip
def test_refused_changes(changes: dict[str, Any], text: str) -> None:
    """Names, types, ranges and sizes are refused, with what was expected."""
    with pytest.raises(ConfigError) as refused:
        check_changes(changes, SIZE)
    assert text in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tier": "fast", "enabled": False, "count_only": True},
        {"tier": None, "active_experts": {"5": 0.25}},
        {"layers": {"0": {"active_experts": [[8, 24], [32, 32]], "threshold": 0.5}}, "select_top_k": 8},
        {"keep": {"0": [*range(16)], "5": []}, "threshold": 10**19},
    ],
    ids=["nothing", "tier", "M of a layer", "layers", "keep"],
)
def test_accepted_changes(changes: dict[str, Any]) -> None:
    """Whatever a worker may take passes unchanged."""
    assert check_changes(changes, SIZE) == changes


def test_no_integer_is_wider_than_messages() -> None:
    """Messages between processes carry integers of 64 bits: a larger threshold is sent as a float."""
    passed = check_changes({"threshold": 10**30, "layers": {"1": {"threshold": 1 << 63}}}, SIZE)
    assert isinstance(passed["threshold"], float)
    assert isinstance(passed["layers"]["1"]["threshold"], float)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (None, ModelSize()),
        (SimpleNamespace(), ModelSize()),
        (SimpleNamespace(hf_text_config=SimpleNamespace(), get_num_experts=lambda: 0), ModelSize()),
        (
            SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=6), get_num_experts=lambda: 16),
            SIZE,
        ),
    ],
    ids=["no engine", "empty", "not told", "told"],
)
def test_sizes_of_models(config: Any, size: ModelSize) -> None:
    """Layers and experts are the engine's own numbers; where it has none, more than any model has."""
    assert ModelSize.of(config) == size
