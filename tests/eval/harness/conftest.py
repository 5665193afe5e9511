"""Where lm-eval is missing, its tests are skipped by name; data sets of tests are kept beside them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sere.eval.harness.tasks import write_tasks
from tests.support.checkpoints import save_checkpoint, tiny_tokenizer
from tests.support.vllm.models import save_model, table_of


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a character-level tokenizer, and its table beside it."""
    return save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def vllm_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that vLLM serves on a CPU, with that tokenizer, and its table beside it."""
    path = save_model(tmp_path_factory.mktemp("vllm"), eos_token_id=1)
    tiny_tokenizer().save_pretrained(path)
    table_of(path).rename(path.parent / "table.safetensors")
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of sere's own tasks, six short questions each."""
    path = tmp_path_factory.mktemp("tasks")
    write_tasks(path, tasks=["sorting", "reversal"], per_task=6, max_new_tokens=8)
    return path


@pytest.fixture
def _without_lm_evals_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's command does not read its own tasks, some ten thousand files."""
    from lm_eval import tasks

    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))


@pytest.fixture
def manager(folder: Path) -> Any:
    """lm-eval's manager of these tasks alone."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)
