"""Where lm-eval is missing, its tests are skipped by name; data sets of tests are kept beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sere.eval.harness.tasks import write_tasks
from tests.support.checkpoints import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a character-level tokenizer, and its table beside it."""
    return save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of sere's own tasks, six short questions each."""
    path = tmp_path_factory.mktemp("tasks")
    write_tasks(path, tasks=["sorting", "reversal"], per_task=6, max_new_tokens=8)
    return path


@pytest.fixture
def manager(folder: Path) -> Any:
    """lm-eval's manager of these tasks alone."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)
