"""Engines of this process leave nothing behind."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from sere.engines.in_process import in_process_engine, worker_of
from sere.errors import EngineFailure
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


def test_a_failed_start_has_vllms_own_reason(tmp_path: Path) -> None:
    """What vLLM refuses is one error with the reasons, without the whole configuration that it prints."""
    with (
        pytest.raises(EngineFailure, match=r"vLLM .* did not start: .*max_model_len") as caught,
        engine(save_model(tmp_path), max_model_len=100_000),
    ):
        pass
    assert "input_value" not in str(caught.value)


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What vLLM is asked for; no engine starts."""
    asked: dict[str, Any] = {}

    def started(*_: Any, **given: Any) -> None:
        asked.update(given)
        raise RuntimeError("enough")

    monkeypatch.setattr("vllm.LLM", started)
    return asked


@pytest.mark.parametrize(
    ("given", "executor"),
    [
        ({}, "uni"),
        ({"tensor_parallel_size": 2}, "mp"),
        ({"pipeline_parallel_size": 2}, "mp"),
        ({"pipeline_parallel_size": 2, "distributed_executor_backend": "ray"}, "ray"),
    ],
    ids=["one", "tensor", "pipeline", "given"],
)
def test_workers_that_share_a_model_run_on_this_machine(
    tmp_path: Path, options: dict[str, Any], given: dict[str, Any], executor: str
) -> None:
    """One runs in this process; several never by Ray, which vLLM may choose. What was given wins."""
    with pytest.raises(EngineFailure, match="enough"), in_process_engine(save_model(tmp_path), **given):
        pass
    assert options["distributed_executor_backend"] == executor
