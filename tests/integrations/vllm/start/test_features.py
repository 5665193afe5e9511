"""Features of the engine that cannot be combined with re-routing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sere.config import RerouteConfig
from sere.errors import UnsupportedEngine
from sere.integrations.vllm.start import features
from tests.support.vllm.standins import engine_config


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
        ("parallel_config", {"enable_elastic_ep": True}, "elastic expert parallelism: its ranks come", False),
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
        ({"prefill_context_parallel_size": 2}, "prefill context parallelism: each rank sees only a part"),
    ],
)
def test_refused_features(parallel: dict[str, Any], text: str) -> None:
    """Each feature that mixes up rows is refused with its reason; plain tensor parallelism is not."""
    with pytest.raises(UnsupportedEngine, match=text):
        features.check_features(engine_config(**parallel), allow_untested=False)
    features.check_features(engine_config(tensor_parallel_size=2), allow_untested=False)


@pytest.mark.parametrize(
    ("gathers", "untested", "text"),
    [
        (True, False, "layer: its expert kernel has vLLM gather the rows of all ranks before"),
        (True, True, "layer: its expert kernel has vLLM gather the rows of all ranks before"),
        (None, False, "layer: it cannot be told whether vLLM gathers the rows"),
        (None, True, None),
        (False, False, None),
    ],
)
def test_layers_whose_rows_are_gathered(gathers: bool | None, untested: bool, text: str | None) -> None:
    """A layer that gets the rows of all ranks is refused; where it cannot be told, that can be allowed."""
    if text is None:
        features.refuse_gathering("layer", gathers, allow_untested=untested)
    else:
        with pytest.raises(UnsupportedEngine, match=text):
            features.refuse_gathering("layer", gathers, allow_untested=untested)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"approximate_experts": {"0": [3]}}, "expert substitution (approximate_experts)"),
        (
            {"compression_config": {"transform_config": {"expert_substitution": {"version": 1}}}},
            "expert substitution (compression_config)",
        ),
        ({"approximate_experts": {}, "compression_config": {"transform_config": {}}}, None),
    ],
    ids=["list", "compressed", "none"],
)
def test_experts_that_are_replaced_by_constants(config: dict[str, Any], text: str | None) -> None:
    """Experts that vLLM 0.33 computes as constants are not those of the table: refused by name."""
    for hf_config in (
        SimpleNamespace(**config),
        SimpleNamespace(text_config=SimpleNamespace(**config)),
    ):
        engine = engine_config()
        engine.model_config = SimpleNamespace(hf_config=hf_config)
        if text is None:
            features.check_features(engine, allow_untested=False)
        else:
            with pytest.raises(UnsupportedEngine) as refused:
                features.check_features(engine, allow_untested=False)
            assert str(refused.value).startswith(text)
        features.check_features(engine, allow_untested=True)


def test_backend_that_passes_routers_by() -> None:
    """A decode backend that chooses experts without the router is refused, with its name; others are not."""
    config = engine_config()
    config.additional_config = {"decode_backend": "latency_specialized"}
    with pytest.raises(
        UnsupportedEngine, match="decode_backend latency_specialized: its decode steps choose"
    ):
        features.check_features(config, allow_untested=True)
    config.additional_config = {"decode_backend": "other"}
    features.check_features(config, allow_untested=False)
