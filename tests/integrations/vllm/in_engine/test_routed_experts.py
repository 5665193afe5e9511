"""Routed experts that vLLM returns for replay; its second model runner alone can."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from tests.support.vllm.engines import engine, prompts, sampling
from tests.support.vllm.watching import watched

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(
        os.environ.get("VLLM_USE_V2_MODEL_RUNNER") != "1", reason="test_second_runner.py runs this"
    ),
]


@pytest.mark.parametrize("merge", ["none", "distinct"])
def test_returned_experts_are_those_that_ran(model: Path, merge: str) -> None:
    """The ids returned for decoded tokens are the re-routed ones; with "distinct", a row has none twice."""
    options = {"enable_return_routed_experts": True, "enable_prefix_caching": True}
    # Of K = 4 slots each can have an expert of its own only if four are read.
    settings = {"select_top_k": 1, "active_experts": 4, "merge": merge}
    with engine(model, settings, **options) as llm, watched(llm) as steps:
        outputs = llm.generate(prompts(4), sampling(tokens=4), use_tqdm=False)
    ran = {tuple(sorted(row)) for step in steps for row in step.new_ids.tolist()}
    twice = 0
    for output in outputs:
        rows = np.asarray(output.outputs[0].routed_experts)[len(output.prompt_token_ids) :, 0]
        assert {tuple(sorted(row)) for row in rows.tolist()} <= ran
        twice += sum(len(set(row)) < len(row) for row in rows.tolist())
    assert (twice > 0) == (merge == "none")
