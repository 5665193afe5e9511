"""Somebody re-routes, or calibrates, a model with a LoRA adapter on it."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model

import sere
from tests.support.decoding import prompts, random_table
from tests.support.tiny import tiny_model

# PEFT uses a property that Transformers 5.24 renamed, and patterns that match no module of the tiny model.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("target", [["q_proj", "v_proj"], "all-linear"], ids=["attention", "all-linear"])
def test_generate_with_a_lora_model(target: list[str] | str) -> None:
    """``sere.apply(peft_model, …)`` and ``peft_model.generate``: fewer experts run, and nothing is merged."""
    model = tiny_model("qwen3_moe")
    table = random_table(model)
    lora = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules=target)).eval()
    with sere.apply(lora, table, active_experts=0) as handle:
        lora.generate(prompts(), max_new_tokens=6, do_sample=False)
    assert all(layer.distinct_after < layer.distinct_before for layer in handle.stats())
