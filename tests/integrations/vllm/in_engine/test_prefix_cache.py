"""Prefix caching: what comes out of the cache is skipped, and the rest of the prompt stays exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from tests.support.vllm.engines import engine, sampling
from tests.support.vllm.watching import kinds, watched

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

BLOCK = 128


def test_shared_prefix(model: Path) -> None:
    """With a block of the prompt cached, the rows that are left are protected; decoded rows follow."""
    prefix = [(7 * j * j + j) % 128 for j in range(BLOCK)]
    with engine(model, {"select_top_k": 1}, enable_prefix_caching=True) as llm:
        for tail in ([5], [9], [3, 4, 8]):
            with watched(llm) as seen:
                output = llm.generate(
                    [{"prompt_token_ids": prefix + tail}], sampling(tokens=6), use_tqdm=False
                )[0]
            budget, ids, _, new_ids = seen[0]
            if tail == [5]:
                assert not output.num_cached_tokens
                continue
            assert output.num_cached_tokens == BLOCK
            assert len(budget) == len(tail)
            assert "decoded" not in kinds(budget)
            assert torch.equal(new_ids, ids)
            assert sum(kinds(step[0]) == {"decoded"} for step in seen) == 5


@pytest.mark.parametrize("shared", [True, False])
def test_answers_in_the_next_prompt(model: Path, shared: bool) -> None:
    """A prompt that continues another's answer finds its re-routed tokens only where they are shared."""
    prompt = [(7 * j * j + j) % 128 for j in range(BLOCK)]
    settings = {"select_top_k": 1, "share_rerouted_blocks": shared}
    with engine(model, settings, enable_prefix_caching=True, max_model_len=512) as llm:
        first = llm.generate([{"prompt_token_ids": prompt}], sampling(tokens=BLOCK + 4), use_tqdm=False)[0]
        following = [*prompt, *first.outputs[0].token_ids, 3, 4]
        second = llm.generate([{"prompt_token_ids": following}], sampling(tokens=2), use_tqdm=False)[0]
    assert second.num_cached_tokens == (2 * BLOCK if shared else BLOCK)
