"""Engines of this process leave nothing behind."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from sere.engines.in_process import worker_of
from tests.support.vllm.engines import engine, generate, prompts
from tests.support.vllm.models import save_model

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def test_failed_start_leaves_the_default_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that fails while the model is built gives torch its own dtype back; old releases do not."""

    def fail(*_: Any, **__: Any) -> None:
        torch.set_default_dtype(torch.bfloat16)
        raise RuntimeError("failed while the model was built")

    monkeypatch.setattr("vllm.LLM", fail)
    with pytest.raises(RuntimeError, match="failed while"), engine(save_model(tmp_path)):
        pass
    assert torch.get_default_dtype() == torch.float32


def test_an_engine_that_ended_leaves_no_weights(tmp_path: Path) -> None:
    """Compiled code and what watches it let go of the model: the next engine of this process finds room."""
    with engine(save_model(tmp_path), {"select_top_k": 1}, enforce_eager=False) as llm:
        compiled = weakref.ref(worker_of(llm).model_runner.model.model)
        assert compiled() is not None
        generate(llm, prompts())
    del llm
    gc.collect()
    assert compiled() is None
