"""What an engine is started with: versions, features that cannot be combined, the plug-in's settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sere.config import RerouteConfig
from sere.errors import ConfigError, UnsupportedEngine
from sere.integrations.vllm.options import Options, misplaced, section
from sere.integrations.vllm.start import features, versions
from tests.support.vllm.standins import engine_config


@pytest.mark.parametrize(
    ("version", "device", "fine"),
    [
        ("0.32.0", "cpu", True), ("0.30.1", "cpu", True), ("0.29.0", "cpu", False), ("0.20.0", "cuda", True),
        ("0.33.0", "cuda", True), ("0.34.0", "cuda", False), ("0.19.1", "cuda", False), (None, "cpu", False),
        ("1.0", "cuda", False), ("0.33.0", "cpu", False),
    ],
)  # fmt: skip
def test_versions(version: str | None, device: str, fine: bool) -> None:
    """Versions that were read or run pass; on a CPU those whose kernels leave routing to the router."""
    versions.check_version(version, device_type=device, allow_untested=True)
    if fine:
        versions.check_version(version, device_type=device, allow_untested=False)
    else:
        with pytest.raises(UnsupportedEngine, match=f"vLLM {version or 'of unknown version'}"):
            versions.check_version(version, device_type=device, allow_untested=False)


@pytest.mark.parametrize(
    ("holder", "value", "text", "certain"),
    [
        (
            "cache_config",
            {"kv_sharing_fast_prefill": True},
            "kv_sharing_fast_prefill: its later layers",
            True,
        ),
        ("model_config", {"is_diffusion": True}, "block diffusion: the model computes a block", True),
        ("diffusion_config", {}, "block diffusion: the model computes a block", True),
        ("speculative_config", {"enable_adaptive_verification": True}, "adaptive verification of dr", False),
    ],
)
def test_features_that_hide_decode_steps(
    holder: str, value: dict[str, Any], text: str, certain: bool
) -> None:
    """What would give rows the budgets of others, or re-route nothing, is refused by its name."""
    config = engine_config()
    setattr(config, holder, SimpleNamespace(**value))
    with pytest.raises(UnsupportedEngine, match=text):
        features.check_features(config, allow_untested=False)
    if certain:
        with pytest.raises(UnsupportedEngine, match=text):
            features.check_features(config, allow_untested=True)
    else:
        features.check_features(config, allow_untested=True)


@pytest.mark.parametrize(
    ("holder", "value", "text"),
    [
        ("model_config", {"runner_type": "pooling"}, "this engine embeds or classifies (runner 'pooling')"),
        ("kv_transfer_config", {"kv_role": "kv_producer"}, "turn re-routing on in the engine that decodes"),
        ("model_config", {"runner_type": "generate"}, None),
        ("kv_transfer_config", {"kv_role": "kv_both"}, None),
    ],
)
def test_engines_without_decode_steps(holder: str, value: dict[str, Any], text: str | None) -> None:
    """An engine that only reads prompts is warned of at its start, unless prompts are re-routed too."""
    config = engine_config()
    setattr(config, holder, SimpleNamespace(**value))
    warnings = list(features.surprises(config, RerouteConfig(select_top_k=1)))
    assert len(warnings) == (text is not None)
    assert all(str(text) in warning for warning in warnings)
    assert not list(features.surprises(config, RerouteConfig(select_top_k=1, phases="all")))


@pytest.mark.parametrize(
    ("parallel", "text"),
    [
        ({"enable_dbo": True}, "dual batch overlap: each half of the batch"),
        ({"use_sequence_parallel_moe": True}, "sequence-parallel MoE: each rank sees a part"),
        ({"prefill_context_parallel_size": 2}, "prefill context parallelism: each rank sees a part"),
        ({"data_parallel_size": 2}, "data parallelism: where an expert kernel gathers"),
    ],
)
def test_refused_features(parallel: dict[str, Any], text: str) -> None:
    """Each feature that mixes up rows is refused with its reason; plain tensor parallelism is not."""
    with pytest.raises(UnsupportedEngine, match=text):
        features.check_features(engine_config(**parallel), allow_untested=False)
    features.check_features(engine_config(tensor_parallel_size=2), allow_untested=False)


def test_untested_feature_may_be_allowed() -> None:
    """What was only never tried can be allowed; what would be wrong cannot."""
    features.check_features(engine_config(data_parallel_size=2), allow_untested=True)
    with pytest.raises(UnsupportedEngine, match="dual batch overlap"):
        features.check_features(engine_config(enable_dbo=True), allow_untested=True)


def test_options() -> None:
    """Settings of routing and of the plug-in stand side by side; whether merge was given is remembered."""
    options = Options.from_mapping({"select_top_k": 2, "threshold": 0.3, "log_seconds": 5, "merge": "none"})
    assert options.reroute == RerouteConfig(select_top_k=2, threshold=0.3)
    assert (options.log_seconds, options.merge_given, options.enabled) == (5, True, True)
    assert not Options.from_mapping({"select_top_k": 2}).merge_given
    assert section(SimpleNamespace(additional_config={"sere": 1})) == 1
    assert section(SimpleNamespace(additional_config=object())) is None


SETTINGS = {"select_top_k": 2}


@pytest.mark.parametrize(
    ("additional", "words"),
    [
        ({"seree": SETTINGS}, ["'seree'", "this engine will not re-route"]),
        ({"SERE": True}, ["'SERE'", "this engine will not re-route"]),
        ({"rerouting": SETTINGS}, ["'rerouting'", "this engine will not re-route"]),
        (SETTINGS | {"threshold": 0.3}, ["'select_top_k'", "this engine will not re-route"]),
        ({"sere": SETTINGS, "min_active": 8}, ["'min_active'", "these are not read"]),
        ({"sere": None}, ["is null", "this engine will not re-route"]),
    ],
)
def test_misplaced_settings(additional: dict[str, Any], words: list[str]) -> None:
    """Settings that stand where nothing reads them are named, with the place where they belong."""
    warning = str(misplaced(SimpleNamespace(additional_config=additional)))
    assert all(word in warning for word in words)
    assert '{"select_top_k": 2, "threshold": 0.3}' in warning


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
    """Settings in their place, and those of others, are not warned of."""
    assert misplaced(SimpleNamespace(additional_config=additional)) is None


def test_true_is_no_settings() -> None:
    """``{"sere": true}`` is refused with what to write, and with how to leave an engine alone."""
    with pytest.raises(
        ConfigError, match=r'\{"select_top_k": 2.*, got True; .* that is not to re-route has no'
    ):
        Options.from_mapping(True)


def test_unknown_option_of_the_plug_in() -> None:
    """A misspelled name is refused with the nearest of all names, the plug-in's own among them."""
    with pytest.raises(ConfigError, match="unknown setting 'log_second'; did you mean 'log_seconds'"):
        Options.from_mapping({"select_top_k": 2, "log_second": 3})
