"""Settings: one object, strict, the same from Python, JSON and a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sere.config import LayerSettings, RerouteConfig
from sere.config.active_experts import active_experts_of_text, text_of_active_experts
from sere.errors import ConfigError

FULL: dict[str, Any] = {
    "select_top_k": 2, "threshold": 0.3, "active_experts": 4, "cap": True, "min_gain": 0.01, "tier": "fast",
    "preset": None,
    "layers": {"1": {"select_top_k": 1, "active_experts": [[1, 8], [8, 24]]}, "0": {"threshold": 0.5}},
    "keep": {"3": [5, 1]}, "targets": "active", "use_scale": True, "merge": "sentinel", "sentinel": -1,
    "phases": "all", "backend": "torch", "flatten": "on", "table": "t",
}  # fmt: skip


def test_round_trip_through_json_and_file(tmp_path: Path) -> None:
    """What is written is what is read, every setting included."""
    config = RerouteConfig.from_mapping(FULL)
    assert {field.name for field in dataclasses.fields(config)} == set(FULL)
    assert RerouteConfig.from_json(json.dumps(config.to_mapping())) == config
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(FULL))
    assert RerouteConfig.from_file(path) == config


@pytest.mark.parametrize(
    ("value", "read", "text"),
    [
        (0, 0, "0"),
        (24, 24, "24"),
        (0.25, 0.25, "0.25"),
        (1.0, 1.0, "1.0"),
        (1e-05, 1e-05, "1e-05"),
        ("auto", "auto", "auto"),
        ([[8, 24], [32, 32]], ((8, 24), (32, 32)), "8-24/32-32"),
        (np.int64(7), 7, "7"),
        (np.float32(0.5), 0.5, "0.5"),
    ],
    ids=["none", "number", "share", "all", "tiny share", "auto", "points", "numpy int", "numpy float"],
)
def test_active_experts_has_one_form_in_python_json_and_text(value: Any, read: Any, text: str) -> None:
    """A share of all experts is not one expert; what is written as JSON or text reads back as it was."""
    config = RerouteConfig(active_experts=value)
    assert config.active_experts == read
    assert type(config.active_experts) is type(read)
    assert RerouteConfig.from_json(json.dumps(config.to_mapping())) == config
    assert text_of_active_experts(config.active_experts) == text
    back = active_experts_of_text(text)
    assert (back, type(back)) == (read, type(read))


@pytest.mark.parametrize(
    "value",
    [
        True, False, -1, 0.0, 1.5, float("nan"), "all", b"8", None, [], [[8]], [[0, 8]], [[1, -1]],
        [[1, True]], [[8, 24], [8, 32]], [[8, 24], [1, 8]], [[1, 2**40]], 8j,
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_number_of_experts_is_refused(value: Any) -> None:
    """True is not one expert, nor a share; the text shows every form."""
    with pytest.raises(ConfigError, match="active_experts: expected"):
        RerouteConfig(active_experts=value)


def test_active_experts_by_layer_belongs_to_the_settings_of_layers() -> None:
    """A mapping is short for ``layers``; the other layers have what the table or the formula says."""
    config = RerouteConfig.from_mapping(
        {"active_experts": {"1": 0.5, 0: 32}, "layers": {1: {"threshold": 0.3}}}
    )
    assert config.active_experts == "auto"
    assert config == RerouteConfig(
        layers={0: {"active_experts": 32}, 1: {"threshold": 0.3, "active_experts": 0.5}}
    )
    assert config.for_layer(0) == LayerSettings(active_experts=32)
    assert config.for_layer(1) == LayerSettings(threshold=0.3, active_experts=0.5)
    assert config.for_layer(2) == LayerSettings()


def test_a_layer_has_its_own_settings_and_else_those_of_all() -> None:
    """What a layer does not name is what the settings say for all layers."""
    config = RerouteConfig(select_top_k=2, active_experts=24, layers={3: {"select_top_k": 1}})
    assert config.for_layer(3) == LayerSettings(select_top_k=1, active_experts=24)
    assert config.for_layer(0) == LayerSettings(select_top_k=2, active_experts=24)


def test_all_settings_have_defaults() -> None:
    """No setting is needed: one slot per token is primary, M is open, and factors are used if known."""
    config = RerouteConfig.from_mapping({})
    assert config == RerouteConfig()
    assert (config.select_top_k, config.active_experts, config.use_scale) == (1, "auto", None)


def test_the_papers_preset_is_the_published_method() -> None:
    """No filling up, no factors, whatever the table holds; it reads back from what it writes."""
    config = RerouteConfig.paper(2, 0.3)
    assert (config.select_top_k, config.threshold, config.active_experts) == (2, 0.3, 0)
    assert (config.use_scale, config.cap, config.targets, config.layers) == (False, False, "primary", {})
    assert config.min_gain == 0
    assert RerouteConfig.from_mapping(config.to_mapping()) == config
    assert RerouteConfig.from_mapping({"preset": "paper", "select_top_k": 2, "threshold": 0.3}) == config


def test_keep_is_normalized() -> None:
    """Layers become integers, ids sorted and unique, and nothing can be changed afterward."""
    config = RerouteConfig(select_top_k=1, keep={"3": [5, 1, 5]})  # type: ignore[dict-item]
    assert dict(config.keep) == {3: (1, 5)}
    with pytest.raises(TypeError):
        config.keep[4] = (1,)  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.select_top_k = 2  # type: ignore[misc]


def test_many_experts_to_keep() -> None:
    """A hundred thousand ids are read like ten: nothing is done again for each of them."""
    ids = range(100_000)
    assert RerouteConfig(keep={0: (*ids,)}).keep[0] == (*ids,)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"select_topk": 2}, "unknown setting 'select_topk'; did you mean 'select_top_k'"),
        ({"preset": "paper"}, "select_top_k is missing: the preset 'paper' needs it, e.g. 2"),
        ({"select_top_k": True}, "select_top_k: expected an integer of at least 1, got True"),
        ({"select_top_k": 2, "threshold": "0.3"}, "threshold: expected a number of at least 0 .*, got '0.3'"),
        (
            {"select_top_k": 2, "threshold": float("nan")},
            "threshold: expected a number of at least 0 .*, got nan",
        ),
        (
            {"select_top_k": 2, "threshold": float("inf")},
            "threshold: expected a number of at least 0 .*, got inf",
        ),
        (
            {"select_top_k": 2, "threshold": 10**400},
            "threshold: expected a number of at least 0 .*, got 1000",
        ),
        ({"preset": "papers", "select_top_k": 2}, "preset: got 'papers'; did you mean 'paper'"),
        (
            {"preset": "paper", "select_top_k": 2, "use_scale": True},
            "use_scale: the preset 'paper' has False, got True; leave out one of the two",
        ),
        (
            {"preset": "paper", "select_top_k": 2, "active_experts": {0: 8}},
            "layers: the preset 'paper' has {}, got .* leave out one of the two",
        ),
        ({"cap": 1}, "cap: expected true or false, got 1"),
        (
            {"cap": True, "active_experts": 0},
            "cap: needs a number of experts to keep to, got active_experts=0",
        ),
        (
            {"cap": True, "layers": {3: {"active_experts": [[1, 0], [8, 24]]}}},
            "cap: needs a number of experts to keep to, got active_experts=1-0/8-24; give another one",
        ),
        ({"min_gain": 1.5}, r"min_gain: expected a number from 0 to 1 \(a share\), got 1.5"),
        ({"min_gain": True}, "min_gain: expected a number from 0 to 1 .*, got True"),
        ({"layers": {0: {"min_gain": -1}}}, "layers: layer 0: min_gain: expected a number from 0 to 1"),
        ({"min_gain": 0.1, "use_scale": False}, "min_gain: needs the table's factors, which use_scale=false"),
        (
            {"layers": {0: {"min_gain": 0.1}}, "use_scale": False},
            "min_gain: needs the table's factors, which use_scale=false leaves out",
        ),
        (
            {"min_gain": 0.1, "preset": "paper", "select_top_k": 2},
            "min_gain: the preset 'paper' has 0.0, got 0.1",
        ),
        ({"tier": 3}, "tier: expected the name of one of the table's tiers, got 3"),
        ({"layers": [24]}, r"layers: expected {layer index: settings}, got \[24\]"),
        ({"layers": {0: 24}}, 'layers: expected settings such as {"active_experts": 24}, got 24'),
        ({"layers": {0: {"keep": [1]}}}, "layers: unknown setting 'keep'"),
        ({"layers": {0: {"threshold": -1}}}, "layers: layer 0: threshold: expected a number of at least 0"),
        ({"layers": {"x": {}}}, "layers: expected {layer index: settings}, got the key 'x'"),
        ({"layers": {-1: {}}}, "layers: layer indices start at 0, got -1"),
        ({"layers": {0: {}, "0": {}}}, "layers: layer 0 is named twice; give its settings once"),
        (
            {"active_experts": {0: 8, "0": 9}},
            "active_experts: layer 0 is named twice; give its settings once",
        ),
        ({"active_experts": {0: True}}, "layers: layer 0: active_experts: expected .* got True"),
        (
            {"active_experts": {0: 8}, "layers": {0: {"active_experts": 9}}},
            "active_experts: layer 0 is named in layers, too; give one value",
        ),
        ({"select_top_k": 2, "phases": "prefill"}, "phases: got 'prefill' .*valid: all, decode"),
        ({"flatten": True}, "flatten: got True.*valid: auto, off, on"),
        ({"select_top_k": 2, "use_scale": 1}, "use_scale: expected true or false, got 1"),
        ({"select_top_k": 2, "keep": [1]}, r"keep: expected {layer index: \[expert ids\]}, got \[1\]"),
        ({"select_top_k": 2, "keep": {"a": [1]}}, "keep: expected .* got 'a'"),
        ({"select_top_k": 2, "keep": {1: [-1]}}, "keep: layer and expert ids start at 0"),
        ({"select_top_k": 2, "keep": {0: "12"}}, "keep: layer 0: expected a list of expert ids.* got '12'"),
        ({"select_top_k": 2, "keep": {0: {3: 1}}}, "keep: layer 0: expected a list of expert ids"),
        ({"select_top_k": 2, "keep": {0: 3}}, "keep: layer 0: expected a list of expert ids.* got 3"),
        (
            {"select_top_k": 2, "keep": {0: [1.7]}},
            r"keep: layer 0: expected expert ids \(integers\), got 1.7",
        ),
        ({"select_top_k": 2, "keep": {4: ["1"]}}, "keep: layer 4: expected expert ids .*, got '1'"),
        ({"select_top_k": 2, "keep": {4: [True]}}, "keep: layer 4: expected expert ids .*, got True"),
        ({"select_top_k": 2, "keep": {"0": [1], 0: [2]}}, "keep: layer 0 is named twice"),
        ({"select_top_k": 2, "keep": {1.0: [2]}}, r"keep: expected {layer index: .* got 1.0"),
        ({"select_top_k": 2, "keep": {True: [2]}}, r"keep: expected {layer index: .* got True"),
        ({"keep": {0: [2**31]}}, f"keep: layer 0: expected expert ids up to {2**31 - 1}, got {2**31}"),
        (
            {"active_experts": [[row, 8] for row in range(1, 258)]},
            r"active_experts: expected at most 256 points \(rows, experts\), got 257",
        ),
        ({"select_top_k": 2, "keep": {-1: [2]}}, "keep: layer and expert ids start at 0, got -1"),
        (
            {"select_top_k": 2, "merge": "sentinel", "sentinel": 2**40},
            "sentinel: expected an id in the range of int32, e.g. -1; got 1099511627776",
        ),
        (
            {"select_top_k": 2, "merge": "sentinel", "sentinel": -(2**31) - 1},
            "sentinel: expected an id in the range of int32, e.g. -1; got -2147483649",
        ),
        ({"select_top_k": 2, "table": 3}, "table: expected a path, got 3"),
        ([("select_top_k", 2)], "settings: expected a mapping of names to values, got list"),
    ],
)
def test_wrong_settings(values: Any, text: str) -> None:
    """Each wrong setting is refused with the nearest valid name or the valid range."""
    with pytest.raises(ConfigError, match=text):
        RerouteConfig.from_mapping(values)


def test_wrong_files(tmp_path: Path) -> None:
    """A missing file, bad JSON and JSON that is no object are told apart."""
    with pytest.raises(ConfigError, match="cannot be read"):
        RerouteConfig.from_file(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="not valid JSON"):
        RerouteConfig.from_json("{")
    with pytest.raises(ConfigError, match="expected a mapping"):
        RerouteConfig.from_json("3")
