"""A checkpoint and a table on disk for all tests of the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sere.bundled import model_path
from tests.support.checkpoints import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def similarities(checkpoint: Path) -> Path:
    return checkpoint.parent / "table.safetensors"


@pytest.fixture
def tiny_bundled(tmp_path: Path, checkpoint: Path) -> Path:
    """A tiny model of other sizes with the bundled model's tokenizer: fast to decode on a busy machine."""
    folder = tmp_path / "tiny"
    shutil.copytree(checkpoint, folder)
    for path in model_path().glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return folder
