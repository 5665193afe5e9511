"""What the tests of real engines have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.vllm.models import save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-MoE with its table; tests that write into the folder save their own."""
    return save_model(tmp_path_factory.mktemp("model"))
