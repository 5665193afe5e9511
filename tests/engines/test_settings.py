"""Every rule runs in both engines, with the same result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.engines.settings import routed
from sere.engines.transformers import apply_setting
from sere.errors import UnsupportedEngine
from sere.integrations.vllm import read_stats
from sere.policies.spec import POLICIES, parse_spec
from sere.reroute.stats import LayerStats
from sere.table import SimilarityTable, Tier
from tests.support.vllm.engines import engine, generate, prompts
from tests.support.vllm.models import save_model, table_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

SETTINGS = {
    "off": "off",
    "sere": "sere:active_experts=8,threshold=0.2",
    "random": "random:select_top_k=1,active_experts=6",
    "drop": "drop:select_top_k=1,active_experts=6",
    "topk": "topk:select_top_k=2",
    "topp": "topp:p=0.6",
    "oea": "oea:select_top_k=1",
    "xshare": "xshare:budget=9",
    "budget": "budget:budget=6,mode=truncate",
    "lynx": "lynx:drop_share=0.4",
    "pool": "pool:size=5",
    "prune": "prune:size=5",
}
# M of steps of eight rows by layer, 0 for all others; None where ρ or S decide, or a step has fewer experts.
OWN: dict[str, dict[int, int] | None] = {
    "sere": None,
    "sere:active_experts=9": {0: 9, 1: 9},
    "sere:active_experts=1-4/8-9/16-12": {0: 9, 1: 9},
    "sere:tier=uneven": {0: 8, 1: 10},
    "sere:tier=uneven,threshold=0.3": None,
    "sere:paper,select_top_k=2": None,
}
# Of one length: nothing is padded, and both engines decode all rows in every step.
PROMPTS = torch.tensor([[(31 * i + 7 * j * j + j) % 128 for j in range(6)] for i in range(8)])
TOKENS = 12


class Engines(NamedTuple):
    """One checkpoint in both engines."""

    llm: Any
    model: Any
    table: SimilarityTable


@pytest.fixture(scope="module", params=["qwen3_moe", "glm4_moe"])
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Routers of softmax, and of sigmoid with bias and groups; float32, in which the engines agree."""
    path = save_model(tmp_path_factory.mktemp("model"), request.param)
    tiers = {"uneven": Tier("uneven", ((1, 4), (8, 8)), {1: 10})}
    SimilarityTable.load(table_of(path)).with_tiers(tiers).save(table_of(path))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with engine(path, {"select_top_k": 1}, dtype="float32") as llm:
        yield Engines(llm, model, SimilarityTable.load(table_of(path)))


def on_vllm(engines: Engines, text: str, tokens: int) -> tuple[list[list[int]], list[LayerStats]]:
    given = [{"prompt_token_ids": row} for row in PROMPTS.tolist()]
    with routed(engines.llm, parse_spec(text), seed=3):
        read_stats(engines.llm, reset=True)
        answers = generate(engines.llm, given, tokens=tokens)
        layers = read_stats(engines.llm).layers
    return answers, [replace(layer, name="") for layer in layers]


def on_transformers(engines: Engines, text: str, tokens: int) -> tuple[list[list[int]], list[LayerStats]]:
    options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with apply_setting(engines.model, parse_spec(text), engines.table, seed=3) as handle:
        sequences = engines.model.generate(PROMPTS, attention_mask=torch.ones_like(PROMPTS), **options)
        layers = handle.stats()
    return sequences[:, PROMPTS.shape[1] :].tolist(), [replace(layer, name="") for layer in layers]


def test_every_rule_has_a_setting_here() -> None:
    """No rule is left out of the comparison."""
    assert SETTINGS.keys() == POLICIES.keys()


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "random"])
def test_same_tokens_and_experts_in_both_engines(engines: Engines, name: str) -> None:
    """Eleven decode steps of eight rows give the same tokens and the same counts of experts."""
    expected, layers = on_transformers(engines, SETTINGS[name], TOKENS)
    assert on_vllm(engines, SETTINGS[name], TOKENS) == (expected, layers)
    assert all(layer.steps == TOKENS - 1 for layer in layers)
    assert all((layer.distinct_after < layer.distinct_before) == (name != "off") for layer in layers)


@pytest.mark.parametrize("text", OWN)
def test_settings_of_sere_are_the_same_in_both_engines(engines: Engines, text: str) -> None:
    """M as a number, by rows and by layer gives the same tokens and experts."""
    expected, layers = on_transformers(engines, text, TOKENS)
    assert on_vllm(engines, text, TOKENS) == (expected, layers)
    if (most := OWN[text]) is not None:
        assert all(layer.distinct_after == most.get(layer.index, most[0]) for layer in layers)


def test_random_leaves_the_same_experts_in_both_engines(engines: Engines) -> None:
    """Draws depend on the order of slots, which differs by engine; which experts are left in a step does not.

    That is asked of the first layer: the input of the next one depends on the draws.
    """
    _, (one, *_) = on_transformers(engines, SETTINGS["random"], 2)
    _, (other, *_) = on_vllm(engines, SETTINGS["random"], 2)
    assert one.steps == other.steps == 1
    assert one.distinct_before == other.distinct_before
    assert 6 <= one.distinct_after == other.distinct_after < one.distinct_before


def test_engine_is_as_before_afterward(engines: Engines) -> None:
    """Behind another rule the engine re-routes as it did, and draws are the same for the same seed."""
    llm = engines.llm
    own = on_vllm(engines, SETTINGS["sere"], TOKENS)
    drawn = on_vllm(engines, SETTINGS["random"], TOKENS)
    assert on_vllm(engines, SETTINGS["random"], TOKENS) == drawn
    assert on_vllm(engines, SETTINGS["sere"], TOKENS) == own != drawn
    with routed(llm, parse_spec(SETTINGS["xshare"])):
        generate(llm, prompts())
        assert read_stats(llm).settings == {"policy": "xshare", "budget": 9}
    assert read_stats(llm).settings["select_top_k"] == 1


def test_compiled_engine_refuses_other_rules(tmp_path: Path) -> None:
    """Compiled code has the engine's own rule built in, so another one would silently not run."""
    with (
        engine(save_model(tmp_path), {"select_top_k": 1}, enforce_eager=False) as llm,
        pytest.raises(UnsupportedEngine, match="topk: this engine runs compiled code"),
        routed(llm, parse_spec("topk:select_top_k=1")),
    ):
        pass
