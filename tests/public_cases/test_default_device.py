"""A default device that is not the model's: everything that sere makes is where the model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sere
from sere.calibrate import calibrate
from sere.table import SimilarityTable, compare, import_reference_table, verify_table
from sere.table.plot import draw
from tests.support.calibration import ALL_METRICS
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4
OPTIONS: dict[str, Any] = {"metric": ALL_METRICS, "max_tokens": 64, "seq_len": 16, "progress": False}


@pytest.fixture
def elsewhere() -> Any:
    """Make new tensors on a device where no value can be read, unless they name their own."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def fingerprints(tables: Any) -> dict[str, str]:
    """Return the fingerprint of each metric's table."""
    return {name: table.fingerprint for name, table in tables.items()}


def test_calibrate_in_memory(elsewhere: None) -> None:
    """``torch.set_default_device`` changes no table of a model in memory."""
    with torch.device("cpu"):
        model = tiny_model("qwen3_moe")
        expected = fingerprints(sere.calibrate(model, tiny_tokenizer(), TEXTS, **OPTIONS))
    assert fingerprints(sere.calibrate(model, tiny_tokenizer(), TEXTS, **OPTIONS)) == expected


def test_calibrate_layer_by_layer(elsewhere: None, tmp_path: Path) -> None:
    """Nor that of a checkpoint that is read layer by layer."""
    with torch.device("cpu"):
        tiny_model("qwen3_moe").save_pretrained(tmp_path)
        expected = fingerprints(
            calibrate(tmp_path, low_memory=True, texts=TEXTS, tokenizer=tiny_tokenizer(), **OPTIONS)
        )
    made = calibrate(tmp_path, low_memory=True, texts=TEXTS, tokenizer=tiny_tokenizer(), **OPTIONS)
    assert fingerprints(made) == expected


def test_tables(elsewhere: None, tmp_path: Path) -> None:
    """Tables are saved, loaded, checked, compared, imported and drawn."""
    with torch.device("cpu"):
        model = tiny_model("qwen3_moe")
    table = sere.calibrate(model, metric="weights", progress=False)
    table.save(tmp_path / "table.safetensors")
    loaded = SimilarityTable.load(tmp_path / "table.safetensors")
    assert compare(table, loaded).equal
    assert all(check.passed for check in verify_table(loaded, table.identity))
    assert loaded.critical_experts(0, 1.1) == tuple(range(16))
    torch.save({i: layer.similarity for i, layer in table.layers.items()}, tmp_path / "published.pt")
    assert compare(
        import_reference_table(tmp_path / "published.pt", table.identity, metric="weights"), table
    ).equal
    draw(loaded)
