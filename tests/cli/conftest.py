"""A checkpoint and a table on disk for all tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoints import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def similarities(checkpoint: Path) -> Path:
    return checkpoint.parent / "table.safetensors"
