"""The plug-in's settings: what is accepted, refused, and warned of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sere.config import RerouteConfig
from sere.errors import ConfigError
from sere.integrations.vllm.plugin_config import PluginConfig, misplaced, section


def test_options() -> None:
    """Settings of routing and of the plug-in are given side by side; a given merge is remembered."""
    options = PluginConfig.from_mapping(
        {"select_top_k": 2, "threshold": 0.3, "log_seconds": 5, "merge": "none"}
    )
    assert options.reroute == RerouteConfig(select_top_k=2, threshold=0.3)
    assert (options.log_seconds, options.merge_given, options.enabled) == (5, True, True)
    assert not PluginConfig.from_mapping({"select_top_k": 2}).merge_given
    assert section(SimpleNamespace(additional_config={"sere": 1})) == 1
    assert section(SimpleNamespace(additional_config=object())) is None


SETTINGS = {"select_top_k": 2}


@pytest.mark.parametrize(
    ("additional", "words"),
    [
        ({"seree": SETTINGS}, ["'seree' (did you mean 'sere'?)", "this engine will not re-route"]),
        ({"seree": {}}, ["'seree' (did you mean 'sere'?)", "this engine will not re-route"]),
        ({"active_expert": 8}, ["'active_expert' (did you mean 'active_experts'?)", "will not re-route"]),
        ({"mine": {"selct_top_k": 2}}, ["'mine'", "this engine will not re-route"]),
        ({"count_only": True}, ["has 'count_only', but", "this engine will not re-route"]),
        ({"SERE": True}, ["'SERE'", "this engine will not re-route"]),
        ({"rerouting": SETTINGS}, ["'rerouting'", "this engine will not re-route"]),
        (SETTINGS | {"threshold": 0.3}, ["'select_top_k'", "this engine will not re-route"]),
        ({"sere": SETTINGS, "active_experts": 8}, ["'active_experts'", "these are not read"]),
        ({"sere": None}, ["is null", "this engine will not re-route"]),
    ],
)
def test_misplaced_settings(additional: dict[str, Any], words: list[str]) -> None:
    """Settings under a name that nothing reads are named, with where they belong."""
    warning = str(misplaced(SimpleNamespace(additional_config=additional)))
    assert all(word in warning for word in words)
    assert '{"active_experts": 24}' in warning


@pytest.mark.parametrize(
    "additional",
    [
        {},
        None,
        object(),
        {"sere": SETTINGS},
        {"gdn_prefill_backend": "triton", "threshold": 1, "user": {"a": 1}},
    ],
)
def test_settings_of_others(additional: Any) -> None:
    """Settings under ``sere``, and those of others, are not warned of."""
    assert misplaced(SimpleNamespace(additional_config=additional)) is None


def test_true_is_no_settings() -> None:
    """``{"sere": true}`` is refused with what to write, and with how to leave an engine alone."""
    with pytest.raises(ConfigError, match=r'\{"active_experts": 24\}, or \{\} for the .* got True; to leave'):
        PluginConfig.from_mapping(True)


def test_unknown_option_of_the_plug_in() -> None:
    """A misspelled name is refused with the nearest of all names, the plug-in's own among them."""
    with pytest.raises(ConfigError, match="unknown setting 'log_second'; did you mean 'log_seconds'"):
        PluginConfig.from_mapping({"select_top_k": 2, "log_second": 3})


@pytest.mark.parametrize(
    "given", [[4, 2], [0, 2], [2], [1, 2, 3], ["1", 2], [True, 2], [1.0, 2], 3, "12", {}]
)
def test_wrong_ranges_of_requests(given: Any) -> None:
    """The range of S that requests may ask for is two numbers in order, or an empty list."""
    with pytest.raises(ConfigError, match=r"request_select_top_k: expected .* such as \[2, 4\], or \[\]"):
        PluginConfig.from_mapping({"request_select_top_k": given})


@pytest.mark.parametrize("given", [-1, float("nan"), float("inf"), 1e10, 10**400, True, "60", None])
def test_seconds_that_no_timer_takes(given: object) -> None:
    """A line that could never come is refused when the engine starts."""
    with pytest.raises(ConfigError, match="log_seconds: expected seconds, 0 for no log lines, got"):
        PluginConfig.from_mapping({"log_seconds": given})
