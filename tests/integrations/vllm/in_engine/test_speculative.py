"""Speculative decoding: steps with several rows a request, which verify drafted tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.engines.in_process import state_of, worker_of
from sere.integrations.vllm import configure, read_stats
from tests.support.vllm.engines import engine, generate, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    """Tokens of an engine without drafts and without re-routing."""
    with engine(model, dtype="float32") as llm:
        return generate(llm, prompts(), tokens=24)


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_drafted_rows_are_rerouted(method: str, model: Path, expected: list[list[int]]) -> None:
    """With drafts counting and off give the tokens of plain decoding, S = 1 fewer experts.

    Drafts come from the prompt, or from a drafter with layers of experts, which keeps its own.
    """
    drafter = {"method": method, "model": str(model), "num_speculative_tokens": 2}
    with engine(
        model,
        {"select_top_k": 1, "count_only": True},
        dtype="float32",
        speculative_config=NGRAM if method == "ngram" else drafter,
    ) as llm:
        assert generate(llm, prompts(), tokens=24) == expected
        full = read_stats(llm, reset=True)
        assert full.layers[0].rows > len(prompts())
        configure(llm, count_only=False)
        generate(llm, prompts(), tokens=24)
        fewer = read_stats(llm, reset=True)
        assert fewer.layers[0].distinct_after < full.layers[0].distinct_after
        configure(llm, enabled=False)
        assert generate(llm, prompts(), tokens=24) == expected
        if method == "draft_model":
            model = worker_of(llm).model_runner.get_draft_model()
            routers = [module.router for module in model.modules() if hasattr(module, "router")]
            assert len(routers) == len(state_of(llm).layers) == 2
            assert not any("_compute_routing" in vars(router) for router in routers)
