"""The same under torch.compile: what is changed between steps reaches compiled code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.support.vllm.models import save_model, table_of

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.integrations.vllm import configure, read_expert_counts, read_stats
from sere.reroute import COUNTERS
from sere.similarity.layer import LayerSimilarity
from sere.table import SimilarityTable
from tests.support.vllm.engines import engine, generate, prompts, sampling

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def test_compiled_engine(tmp_path: Path) -> None:
    """Compiled: S = K, counting and off give the tokens of an engine without re-routing, S = 1 fewer experts.

    A protected request gets its own tokens, and changed ρ, S and off are heeded without compiling anew. The
    uses of all experts add up to the layers' slots.
    """
    path = save_model(tmp_path)
    with engine(path, enforce_eager=False) as llm:
        expected = generate(llm, prompts())
    with engine(path, {"select_top_k": 4, "count_experts": True}, enforce_eager=False) as llm:
        assert generate(llm, prompts()) == expected
        assert read_stats(llm, reset=True).steps_rerouted == 0
        configure(llm, count_only=True)
        assert generate(llm, prompts()) == expected
        kept = read_expert_counts(llm)
        assert all(one.chosen == one.ran and sum(one.chosen) for one in kept)
        before = read_stats(llm, reset=True).layers[0]
        assert before.steps > 0
        assert before.slots_rerouted == 0

        configure(llm, count_only=False, select_top_k=1)
        changed = generate(llm, prompts())
        (answer,), counts = llm.collective_rpc("sere_stats"), read_expert_counts(llm)
        sums = [dict(zip(COUNTERS, layer["counters"], strict=True)) for layer in answer["layers"]]
        assert [sum(one.chosen) for one in counts] == [layer["slots"] for layer in sums]
        assert [sum(one.ran) for one in counts] == [layer["slots_computed"] for layer in sums]
        assert all(one.chosen != one.ran for one in counts)
        after = read_stats(llm, reset=True).layers[0]
        assert not any(map(any, ((*one.chosen, *one.ran) for one in read_expert_counts(llm))))
        assert changed != expected
        assert after.distinct_after < before.distinct_before

        configure(llm, threshold=1.0)
        assert generate(llm, prompts()) == expected
        assert read_stats(llm, reset=True).layers[0].slots_rerouted == 0

        configure(llm, threshold=0.0)
        assert generate(llm, prompts()) == changed
        read_stats(llm, reset=True)
        generate(llm, prompts(), extra_args={"sere": "off"})
        assert read_stats(llm, reset=True).steps_rerouted == 0
        mixed = [sampling(extra_args={"sere": "off"}), *[sampling()] * 7]
        outputs = llm.generate(prompts(), mixed, use_tqdm=False)
        assert list(outputs[0].outputs[0].token_ids) == expected[0]

        configure(llm, enabled=False)
        read_stats(llm, reset=True)
        assert generate(llm, prompts()) == expected
        assert read_stats(llm).steps_rerouted == 0


def test_another_table_under_the_same_name(tmp_path: Path) -> None:
    """What is compiled reads the table that the engine was started with, not the one it was compiled with."""
    path = save_model(tmp_path)
    settings = {"select_top_k": 1, "threshold": 0.5}
    with engine(path, settings, enforce_eager=False) as llm:
        generate(llm, prompts())
        assert read_stats(llm).layers[0].slots_rerouted > 0

    table = SimilarityTable.load(table_of(path))
    unlike = {
        index: LayerSimilarity(0.1 + 0.9 * torch.eye(layer.num_experts))
        for index, layer in table.layers.items()
    }
    dataclasses.replace(table, layers=unlike).save(table_of(path))
    with engine(path, settings, enforce_eager=False) as llm:
        generate(llm, prompts())
        assert read_stats(llm).layers[0].slots_rerouted == 0
        assert read_stats(llm).layers[0].critical > 0
