"""Tensor and pipeline parallelism: two worker processes on one CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sere.defaults import TABLE
from sere.errors import EngineError
from tests.support.hub_server import HubServer, Repo, serving
from tests.support.vllm.models import save_model, table_of

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.integrations.vllm import configure, read_expert_counts, read_stats
from tests.support.vllm.engines import engine, generate, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

NAME = "mill/moe-sere"


@pytest.fixture(autouse=True)
def _one_core_each(monkeypatch: pytest.MonkeyPatch) -> None:
    # On one NUMA node vLLM does not find cores for two workers by itself.
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub of this process: workers, which are others, have no network."""
    with serving(tmp_path / "cache", monkeypatch) as server:
        yield server


def test_two_processes_give_the_tokens_of_one(tmp_path: Path, hub: HubServer) -> None:
    """With TP = 2 and with PP = 2 tokens and counters are those of one process, off and on.

    The table of TP = 2 is a repository on the hub: it is downloaded once, before there are any workers.
    """
    path = save_model(tmp_path)
    hub.repositories[NAME] = Repo()
    hub.repositories[NAME].commit({TABLE: table_of(path).read_bytes()})
    found = []
    for kind in ("", "tensor", "pipeline"):
        parallel = {f"{kind}_parallel_size": 2, "distributed_executor_backend": "mp"} if kind else {}
        settings: dict[str, Any] = {"select_top_k": 1, "count_experts": True}
        settings |= {"table": NAME} if kind == "tensor" else {}
        with engine(path, settings, dtype="float32", **parallel) as llm:
            on = generate(llm, prompts())
            experts = read_expert_counts(llm)
            layers = read_stats(llm, reset=True).layers
            answers = llm.collective_rpc("sere_stats", args=(False,))
            assert [len(answer["layers"]) for answer in answers] == {"": [2], "tensor": [2, 2]}.get(
                kind, [1, 1]
            )
            configure(llm, enabled=False)
            found.append((on, generate(llm, prompts()), layers, experts))
    assert found[0] == found[1] == found[2]
    assert hub.downloads(TABLE) == 1
    assert found[0][0] != found[0][1]
    assert all(sum(one.ran) for one in found[0][3])


def _fill_memory(worker: Any) -> None:
    """Let one rank of two fail at the next change of settings."""

    def fail(*_: Any) -> Any:
        raise MemoryError("no memory")

    if worker.rank == 1:
        worker.sere_state.rules.limits = fail


def _heal(worker: Any) -> None:
    vars(worker.sere_state.rules).pop("limits", None)


def test_one_rank_fails_to_change(model: Path) -> None:
    """With TP = 2, a change that fails on rank 1 changes neither rank, no token and no statistic."""
    parallel = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "dtype": "float32"}
    with engine(model, {"select_top_k": 1}, **parallel) as llm:
        tokens = generate(llm, prompts())
        llm.collective_rpc(_fill_memory)
        with pytest.raises(EngineError, match="rank 1: MemoryError: no memory while the change was prepared"):
            configure(llm, threshold=0.9)
        assert read_stats(llm).settings["threshold"] == 0.0
        assert generate(llm, prompts()) == tokens
        llm.collective_rpc(_heal)
        assert configure(llm, threshold=0.9)["threshold"] == 0.9
        assert [answer["settings"]["threshold"] for answer in llm.collective_rpc("sere_stats")] == [0.9, 0.9]
        assert generate(llm, prompts()) != tokens
