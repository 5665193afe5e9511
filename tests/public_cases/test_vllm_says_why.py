"""What people do with vLLM that re-routes nothing: the engine names it (real ones: integrations/vllm)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sere.bench.target import random_table
from sere.integrations.vllm import plugin
from sere.integrations.vllm.engine_stats import merge_answers
from sere.integrations.vllm.plugin_config import misplaced
from sere.integrations.vllm.worker.start_log import log_start
from tests.support.tiny import tiny_model
from tests.support.vllm.standins import CPUUnquantizedExperts, SmallEngine, prepared

REQUESTS = ("a", "b", "c")


def started(**settings: Any) -> SmallEngine:
    """An engine whose model is its routers: two layers, 16 experts, 4 slots."""
    table = random_table(tiny_model("qwen3_moe"))
    return SmallEngine(prepared(table, {}, torch.nn.Module, kernel=CPUUnquantizedExperts(), **settings))


def why(engine: SmallEngine) -> str:
    """What the log says at shutdown is what the statistics say."""
    return str(merge_answers([engine.state.report()]).nothing_changed)


def test_log_likelihoods_through_vllm() -> None:
    """Tasks that score given texts never decode."""
    engine = started()
    engine.prompts(*REQUESTS)
    assert "no decode step was seen in 1 call of the model" in why(engine)


def test_serving_with_a_floor_that_the_batch_never_reaches() -> None:
    """Three requests read 12 experts; a floor of 14 keeps them all."""
    engine = started(active_experts=14)
    engine.prompts(*REQUESTS)
    engine.decode(*REQUESTS, steps=3)
    assert "active_experts=14 is not below what these batches read (up to 12 experts per layer)" in why(
        engine
    )


def test_serving_requests_that_are_all_protected() -> None:
    """Every client sends ``"off"``."""
    engine = started()
    engine.prompts(*REQUESTS, tier="off")
    engine.decode(*REQUESTS, steps=3)
    assert 'all requests kept their own experts, because "off"' in why(engine)


def test_serving_with_a_threshold_of_two(caplog: pytest.LogCaptureFixture) -> None:
    """The log says so as soon as the engine has started."""
    caplog.set_level("WARNING", logger="vllm.sere")
    log_start(started(threshold=2.0).state)
    assert "threshold=2 is above every similarity in the table" in caplog.text


@pytest.mark.parametrize("additional", [{"seree": {"select_top_k": 2}}, {"select_top_k": 2}, {"sere": None}])
def test_settings_under_a_wrong_name(additional: dict[str, Any]) -> None:
    """A misspelled key, none at all, or null."""
    assert "this engine will not re-route" in str(misplaced(SimpleNamespace(additional_config=additional)))


def test_kill_switch_set_to_false(monkeypatch: pytest.MonkeyPatch) -> None:
    """``SERE_DISABLE=false`` leaves the plug-in on."""
    monkeypatch.setenv("SERE_DISABLE", "false")
    assert not plugin.is_disabled()
