"""Models whose layers differ in E or K, and models loaded with another K than at calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sere
from sere.errors import ConfigError
from sere.table import SimilarityTable, fit
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model, uneven_model

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4
PROMPTS = torch.arange(3, 43).view(8, 5)


def calibrated(model: Any, **options: Any) -> SimilarityTable:
    """Return a table of a few tokens."""
    return sere.calibrate(
        model, tiny_tokenizer(), TEXTS, max_tokens=64, seq_len=16, progress=False, **options
    )


def test_calibrate_save_load_and_apply_with_layers_of_16_and_12_experts(tmp_path: Path) -> None:
    """Each layer keeps its own E and K, is checked against them, and is re-routed."""
    model = uneven_model()
    calibrated(model).save(tmp_path / "table.safetensors")
    table = SimilarityTable.load(tmp_path / "table.safetensors")
    assert (table.identity.experts, table.identity.slots) == ({0: 16, 1: 12}, {0: 4, 1: 2})
    with sere.apply(model, table, select_top_k=1) as handle:
        model.generate(PROMPTS, max_new_tokens=6, do_sample=False)
        assert all(layer.slots_rerouted > 0 for layer in handle.stats())


def test_keep_is_checked_against_the_layers_own_number_of_experts() -> None:
    """Expert 12 exists in the layer of 16 experts and not in the layer of 12."""
    model = uneven_model()
    table = calibrated(model, metric="cosine")
    sere.apply(model, table, select_top_k=1, keep={0: [12]}).remove()
    with pytest.raises(ConfigError, match="keep: layer 1 has the experts 0 to 11, got 12"):
        sere.apply(model, table, select_top_k=1, keep={1: [12]})


def test_layers_that_the_settings_leave_idle_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """S = 2 is all slots of the layer with K = 2: the log says that this layer is left alone."""
    model = uneven_model()
    sere.apply(model, calibrated(model), select_top_k=2).remove()
    (line,) = [text for text in caplog.messages if "will be re-routed" in text]
    assert "select_top_k=2 is not smaller than top_k=2 of layer 1, so nothing will be re-routed there" in line
    assert line.endswith("; use select_top_k=1")


def test_a_floor_that_is_all_experts_of_one_layer_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """A floor of 12 is every expert of the layer of 12; with S = 4 the other is idle for its own reason."""
    model = uneven_model()
    table = calibrated(model)
    sere.apply(model, table, select_top_k=1, active_experts=12).remove()
    (line,) = [text for text in caplog.messages if "disables re-routing" in text]
    assert "active_experts=12 disables re-routing in layer 1: with 12 experts per layer every routed" in line
    caplog.clear()
    sere.apply(model, table, select_top_k=4, active_experts=12).remove()
    (line,) = [text for text in caplog.messages if "will be re-routed" in text]
    assert "select_top_k=4 is not smaller than top_k=4 of layer 0, so nothing will be re-routed" in line


@pytest.mark.parametrize("how", ["config", "router"])
def test_apply_to_a_model_with_fewer_slots_per_token_than_at_calibration(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """``num_experts_per_tok=2`` at loading, or ``gate.top_k = 2`` later: the table fits, with one line."""
    fit.warn_once.forget()
    table = calibrated(tiny_model("qwen3_moe"), metric="projection")
    model = tiny_model("qwen3_moe", num_experts_per_tok=2 if how == "config" else 4)
    if how == "router":
        for layer in model.model.layers:
            layer.mlp.gate.top_k = 2
    with sere.apply(model, table, select_top_k=1) as handle:
        model.generate(PROMPTS, max_new_tokens=6, do_sample=False)
        assert all(layer.slots_rerouted > 0 for layer in handle.stats())
    assert any(
        "calibrated with K=4 routed slots per token, this model has K=2" in text for text in caplog.messages
    )


def test_settings_that_fit_only_the_calibrated_k_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """S = 2 re-routes with K = 4; on a model loaded with K = 2 the log says that it re-routes nothing."""
    table = calibrated(tiny_model("mixtral"))
    sere.apply(tiny_model("mixtral"), table, select_top_k=2).remove()
    assert not any("will be re-routed" in text for text in caplog.messages)
    sere.apply(tiny_model("mixtral", num_experts_per_tok=2), table, select_top_k=2).remove()
    assert any("select_top_k=2 is not smaller than the model's top_k=2" in text for text in caplog.messages)
