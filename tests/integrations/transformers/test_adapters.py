"""Models with an adapter (PEFT) around them, around their experts, or around their routers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import sere.integrations.transformers as integration
from sere.errors import UnsupportedModel
from sere.integrations.transformers.inputs import cache_argument
from sere.policies import Oea
from sere.structure import identify
from sere.wrappers import inner_model
from tests.support.decoding import hook_count, prompts, random_table
from tests.support.tiny import tiny_model

# PEFT warns of keys of its own that match no module, and uses a property that Transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings("ignore")

ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "experts": {
        "target_modules": [],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    },
    "router saved": {"target_modules": ["q_proj"], "modules_to_save": ["gate"]},
}


def adapted(model: PreTrainedModel, **options: Any) -> PeftModel:
    """A model with an adapter that changes its outputs."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        found = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **options))
    return found.eval()


def generate(model: Any) -> Tensor:
    result: Tensor = model.generate(prompts(), max_new_tokens=6, do_sample=False)
    return result


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_an_adapted_model_is_re_routed_as_the_merged_one(name: str, kind: str) -> None:
    """S = K changes nothing; S = 1 gives the tokens of the merged model; direct calls count as well."""
    model = tiny_model(name)
    table = random_table(model)
    wrapped = adapted(model, **ADAPTERS[kind])
    plain = generate(wrapped)
    with integration.apply(wrapped, table, select_top_k=4):
        assert torch.equal(generate(wrapped), plain)
    with integration.apply(wrapped, table, active_experts=0) as handle:
        rerouted = generate(wrapped)
        stats = handle.stats()
        assert [layer.name for layer in stats] == [f"model.layers.{i}.mlp.experts" for i in range(2)]
        assert all(layer.steps == 5 and layer.distinct_after < layer.distinct_before for layer in stats)
        handle.reset_stats()
        with torch.no_grad():
            cache = DynamicCache(config=model.config)
            for tokens in (prompts(), prompts(6, 1)):
                wrapped(tokens, **cache_argument(model, cache))
        assert handle.stats()[0].steps == 1
    assert hook_count(wrapped) == 0
    assert not torch.equal(rerouted, plain)
    merged = wrapped.merge_and_unload()
    with integration.apply(merged, table, active_experts=0):
        assert torch.equal(generate(merged), rerouted)


def test_a_policy_that_needs_scores_finds_an_adapted_router(model: PreTrainedModel) -> None:
    """The router stands beside the experts, whatever the adapter put around either."""
    wrapped = adapted(model, **ADAPTERS["all-linear"])
    with integration.apply(wrapped, policy=Oea(1)) as handle:
        generate(wrapped)
        assert all(layer.distinct_after < layer.distinct_before for layer in handle.stats())


def test_trained_copies_of_the_experts_are_refused(model: PreTrainedModel) -> None:
    """Two experts modules in one layer: the text says to merge the adapter, and no hook stays."""
    table = random_table(model)
    wrapped = adapted(model, target_modules=["q_proj"], modules_to_save=["experts"])
    with pytest.raises(UnsupportedModel, match=r"two; merge the adapter first \(model = model\.merge_and"):
        integration.apply(wrapped, table, active_experts=0)
    assert hook_count(wrapped) == 0
    merged = wrapped.merge_and_unload()
    with integration.apply(merged, table, active_experts=0) as handle:
        generate(merged)
        assert handle.why_nothing_changed() is None


def test_an_adapter_does_not_change_whose_table_fits(model: PreTrainedModel) -> None:
    """A table belongs to the model within, with its names."""
    before = identify(model)
    wrapped = adapted(model, **ADAPTERS["all-linear"])
    assert identify(inner_model(wrapped)) == before
