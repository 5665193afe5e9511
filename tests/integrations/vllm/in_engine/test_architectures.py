"""Twelve architectures in real engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.vllm.models import ARCHITECTURES, save_model

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.integrations.vllm import configure, read_stats
from tests.support.vllm.engines import engine, generate, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tokens_and_experts(name: str, tmp_path: Path) -> None:
    """Off, S = K, and counting alone, give the same tokens; S = 1 runs fewer distinct experts."""
    with engine(save_model(tmp_path, name), {"select_top_k": 4}) as llm:
        configure(llm, enabled=False)
        expected = generate(llm, prompts())
        configure(llm, enabled=True)
        read_stats(llm, reset=True)
        assert generate(llm, prompts()) == expected
        at_K = read_stats(llm, reset=True)
        configure(llm, count_only=True)
        assert generate(llm, prompts()) == expected
        counted = read_stats(llm, reset=True)
        configure(llm, count_only=False, select_top_k=1)
        generate(llm, prompts())
        at_1 = read_stats(llm)
    assert (at_K.steps_rerouted, at_K.skipped["protected"]) == (0, counted.steps_rerouted)
    for before, after in zip(counted.layers, at_1.layers, strict=True):
        assert before.steps > 0
        assert before.distinct_after == before.distinct_before
        assert before.slots_rerouted == 0
        assert after.distinct_after < after.distinct_before
        assert after.slots_rerouted > 0
