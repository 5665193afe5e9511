"""``sere table`` where it needs to know the model: checking against one, importing for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sere.cli import main
from sere.table import SimilarityTable


def published(path: Path, *, E: int = 16) -> Path:
    """What the published code writes: ``{layer: tensor}`` in bfloat16."""
    halves = [torch.rand(E, E) / 2 for _ in range(2)]
    matrices = {layer: (half + half.T).fill_diagonal_(1.0).bfloat16() for layer, half in enumerate(halves)}
    torch.save(matrices, path)
    return path


def test_published_matrices_become_a_table_of_the_model(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``import`` writes a table that ``verify --model`` accepts for the same model; the loss is noted."""
    source, out = published(tmp_path / "similarity_matrices.pt"), tmp_path / "table.safetensors"
    assert (
        main(["table", "import", str(source), "--model", str(checkpoint), "--out", str(out), "--json"]) == 0
    )
    value = json.loads(capsys.readouterr().out)
    assert value["layers"] == 2
    assert "bfloat16" in " ".join(value["notes"])
    assert set(SimilarityTable.load(out).layers) == {0, 1}
    assert main(["table", "verify", str(out), "--model", str(checkpoint)]) == 0


def test_matrices_of_another_model_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Matrices of 8 experts for a model of 16: one line that names both, and no file."""
    source, out = published(tmp_path / "similarity_matrices.pt", E=8), tmp_path / "table.safetensors"
    assert main(["table", "import", str(source), "--model", str(checkpoint), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "8" in error
    assert "16" in error
    assert not out.exists()


def test_a_model_without_a_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is no checkpoint gives one line that names it."""
    source = published(tmp_path / "similarity_matrices.pt")
    arguments = ["table", "import", str(source), "--model", str(tmp_path), "--out", str(tmp_path / "t")]
    assert main(arguments) == 2
    assert "has no config.json: give a folder that save_pretrained wrote" in capsys.readouterr().err
