"""A checkpoint and a table on disk for all tests of the command line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sere.bundled import model_path
from sere.errors import EngineFailure
from tests.support.checkpoints import save_checkpoint
from tests.support.damage import change_json


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


@pytest.fixture
def only_in_vllm(tiny_bundled: Path, similarities: Path) -> list[str | Path]:
    """Arguments after a command: a model whose type Transformers does not know, in vLLM, and its table."""
    path = change_json(tiny_bundled / "config.json", model_type="alien_moe")
    given = ["--table", str(similarities), "--setting", "sere:select_top_k=1", "--per-task", "2"]
    return [path, "--engine", "vllm", *given]


@pytest.fixture
def not_started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options of the engines that evaluations were about to start; none starts."""
    found: list[dict[str, Any]] = []

    def start(_path: Path, _settings: Any, **options: Any) -> None:
        found.append(options)
        raise EngineFailure("no engine in this test")

    monkeypatch.setattr("sere.engines.in_process.in_process_engine", start)
    monkeypatch.setattr("sere.integrations.vllm.start.versions.check_installed", lambda: "0.32.0")
    return found
