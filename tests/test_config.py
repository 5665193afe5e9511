"""Settings: one object, strict, the same from Python, JSON and a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sere.config import RerouteConfig
from sere.errors import ConfigError

FULL: dict[str, Any] = {
    "select_top_k": 2, "threshold": 0.3, "active_experts": 4, "keep": {"3": [5, 1]}, "targets": "active",
    "use_scale": True, "merge": "sentinel", "sentinel": -1, "phases": "all", "backend": "torch", "table": "t",
}  # fmt: skip


def test_round_trip_through_json_and_file(tmp_path: Path) -> None:
    """What is written is what is read, every setting included."""
    config = RerouteConfig.from_mapping(FULL)
    assert {field.name for field in dataclasses.fields(config)} == set(FULL)
    assert RerouteConfig.from_json(json.dumps(config.to_mapping())) == config
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(FULL))
    assert RerouteConfig.from_file(path) == config


def test_keep_is_normalized() -> None:
    """Layers become integers, ids sorted and unique, and nothing can be changed afterward."""
    config = RerouteConfig(select_top_k=1, keep={"3": [5, 1, 5]})  # type: ignore[dict-item]
    assert dict(config.keep) == {3: (1, 5)}
    with pytest.raises(TypeError):
        config.keep[4] = (1,)  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.select_top_k = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"select_topk": 2}, "unknown setting 'select_topk'; did you mean 'select_top_k'"),
        ({"threshold": 0.1}, "select_top_k is missing"),
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
        ({"select_top_k": 2, "phases": "prefill"}, "phases: got 'prefill' .*valid: all, decode"),
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
