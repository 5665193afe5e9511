"""Tensor parallelism: two worker processes on one CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integrations.vllm.models import save_model

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.integrations.vllm import configure, read_stats
from tests.integrations.vllm.engines import engine, generate, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def test_two_processes_give_the_tokens_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TP = 2 the tokens and the counters are those of one process, off and on."""
    # On one NUMA node vLLM does not find a place for two workers by itself.
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
    path = save_model(tmp_path)
    found = []
    for parallel in ({}, {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}):
        with engine(path, {"select_top_k": 1}, dtype="float32", **parallel) as llm:
            on = generate(llm, prompts())
            layers = read_stats(llm, reset=True).layers
            answers = llm.collective_rpc("sere_stats", args=(False,))
            assert len(answers) == (2 if parallel else 1)
            configure(llm, enabled=False)
            found.append((on, generate(llm, prompts()), layers))
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
