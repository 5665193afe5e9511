"""Too few blocks for all requests: some are preempted while they decode, and computed again later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.config import MOST_INT
from sere.engines.in_process import worker_of
from sere.integrations.vllm import configure, read_stats
from tests.support.vllm.engines import engine, prompts, sampling
from tests.support.vllm.watching import announced, kinds, watched

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

K = 4
# Requests that end one after the other, so that others are decoded while one is computed again. They would
# fill fourteen blocks; one of the eight is vLLM's own.
LENGTHS = (16, 24, 32, 40, 48, 56)
BLOCK, BLOCKS = 32, 8


@contextmanager
def preempted(llm: Any) -> Iterator[list[str]]:
    """Record which requests are preempted."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    preempt = scheduler._preempt_request
    seen: list[str] = []

    def recorded(request: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(request.request_id)
        return preempt(request, *args, **kwargs)

    scheduler._preempt_request = recorded
    try:
        yield seen
    finally:
        del scheduler._preempt_request


@contextmanager
def positions(llm: Any) -> Iterator[list[list[tuple[str, int]]]]:
    """Record each step's rows: the request, and the position after its prompt."""
    runner = worker_of(llm).model_runner
    seen: list[list[tuple[str, int]]] = []

    def record(_: Any, names: list[str], counts: Any, announce: Callable[[], None]) -> None:
        first = {
            name: int(runner.input_batch.num_computed_tokens_cpu[row])
            - runner.requests[name].num_prompt_tokens
            for row, name in enumerate(names[: len(counts)])
        }
        seen.append(
            [
                (name, first[name] + row)
                for name, count in zip(first, counts, strict=True)
                for row in range(count)
            ]
        )
        announce()

    with announced(llm, record):
        yield seen


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    """Tokens of an engine with blocks for all, without re-routing."""
    with engine(model, dtype="float32", block_size=BLOCK) as llm:
        return decode(llm)


def decode(llm: Any) -> list[list[int]]:
    given = prompts(len(LENGTHS), length=20)
    outputs = llm.generate(given, [sampling(tokens=tokens) for tokens in LENGTHS], use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("caching", [False, True])
def test_preempted_requests(model: Path, expected: list[list[int]], caching: bool) -> None:
    """S = K and off give the tokens of an engine that preempts nobody; at S = 1 nothing is lost.

    What is computed again keeps its experts beside rows that are re-routed, with a prefix cache or without.
    """
    with engine(
        model, {"select_top_k": K}, dtype="float32", max_model_len=128, block_size=BLOCK,
        num_gpu_blocks_override=BLOCKS, enable_prefix_caching=caching,
    ) as llm:  # fmt: skip
        for changes in ({}, {"enabled": False}):
            configure(llm, **changes)
            with preempted(llm) as again:
                assert decode(llm) == expected
            assert again
            llm.reset_prefix_cache()

        # However many rows are computed again, those beside them are re-routed.
        worker_of(llm).sere_steps.mixed_rows = MOST_INT
        configure(llm, enabled=True, select_top_k=1)
        read_stats(llm, reset=True)
        with preempted(llm) as again, positions(llm) as rows, watched(llm) as seen:
            found = decode(llm)
        assert tuple(map(len, found)) == LENGTHS
        assert again
        counted = read_stats(llm)
        assert counted.steps_rerouted + counted.steps_skipped == len(rows) == len(seen)
        assert len(worker_of(llm).sere_steps.book) <= len(LENGTHS)

        known: set[tuple[str, int]] = set()
        beside = 0
        for step, (budget, ids, _, new_ids) in zip(rows, seen, strict=True):
            repeated = torch.tensor([row in known for row in step])
            prompt = torch.tensor([position < 0 for _, position in step])
            assert torch.equal(new_ids[repeated | prompt], ids[repeated | prompt])
            beside += bool((repeated & ~prompt).any()) and "decoded" in kinds(budget)
            known.update(step)
        assert beside
