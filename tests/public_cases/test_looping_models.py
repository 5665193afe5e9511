"""A model that runs the same decoder layers several times for each token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sere
from sere.calibrate import calibrate
from sere.calibrate.layerwise.skeleton import Skeleton
from sere.errors import UnsupportedModel
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import Looping, tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4
OPTIONS: dict[str, Any] = {"max_tokens": 64, "seq_len": 16, "progress": False}


def looping_model() -> Any:
    """Return a tiny model that runs its two layers three times over."""
    model = tiny_model("qwen3_moe")
    model.model.layers.__class__ = Looping
    return model


def test_calibrate_sees_all_loops() -> None:
    """The first loop's hidden states alone would give another table."""
    looped = sere.calibrate(looping_model(), tiny_tokenizer(), TEXTS, **OPTIONS)
    once = sere.calibrate(tiny_model("qwen3_moe"), tiny_tokenizer(), TEXTS, **OPTIONS)
    assert looped.calibration_tokens == once.calibration_tokens
    assert not torch.allclose(looped.layers[0].similarity, once.layers[0].similarity, rtol=0, atol=1e-3)


def test_low_memory_refuses_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer there is one loop: refused with the layer and the way out, and no work folder stays."""
    tiny_model("qwen3_moe").save_pretrained(tmp_path / "model")
    make = Skeleton.__init__

    def looping(self: Skeleton, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        self.layers.__class__ = Looping

    monkeypatch.setattr(Skeleton, "__init__", looping)
    options = {"tokenizer": tiny_tokenizer(), "work_dir": tmp_path / "work"} | OPTIONS
    with pytest.raises(UnsupportedModel, match=r"decoder layer 0 3 times; expected once.*low_memory=False"):
        calibrate(tmp_path / "model", low_memory=True, texts=TEXTS, **options)
    assert not (tmp_path / "work").exists()


def test_apply_counts_each_run_of_a_layer() -> None:
    """Five decode steps run each layer 15 times; S = K changes nothing, S = 1 moves slots in every layer."""
    model, prompts = tiny_model("qwen3_moe"), torch.arange(3, 43).view(8, 5)
    for layer in model.model.layers:  # each run with keys and values of its own is up to a looping model
        layer.mlp.forward = lambda hidden, once=layer.mlp.forward: once(once(once(hidden)))
    table = sere.calibrate(model, tiny_tokenizer(), TEXTS, **OPTIONS)
    off = model.generate(prompts, max_new_tokens=6, do_sample=False)
    with sere.apply(model, table, select_top_k=4):
        assert torch.equal(model.generate(prompts, max_new_tokens=6, do_sample=False), off)
    with sere.apply(model, table, select_top_k=1) as handle:
        model.generate(prompts, max_new_tokens=6, do_sample=False)
        stats = handle.stats()
    assert [(layer.steps, layer.rows) for layer in stats] == [(15, 8.0), (15, 8.0)]
    assert all(layer.slots_rerouted > 0 and layer.distinct_after < layer.distinct_before for layer in stats)
