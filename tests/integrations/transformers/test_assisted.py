"""Assisted decoding: steps that check several tokens of one text are decode steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from tests.support.decoding import random_table
from tests.support.tiny import tiny_model

# Every word once, so that any word that is generated has a draft after it.
TEXT = torch.arange(3, 96)[None]


def generate(model: PreTrainedModel, **options: Any) -> Tensor:
    result: Tensor = model.generate(TEXT, max_new_tokens=8, do_sample=False, **options)
    return result


# Transformers 5.24 warns of a call of its own.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["lookup", "assistant"])
def test_checks_of_drafts_are_re_routed(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Each call after the first is a step, its positions are its rows, and one line says what that means.

    Calls with one position are steps of one row, in which nothing can change.
    """
    options: dict[str, Any] = {"assistant_model": tiny_model("qwen3_moe", num_hidden_layers=1)}
    if how == "lookup":
        options = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    fed: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda _, __, inputs: fed.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        generate(model, **options)
        generate(model, **options)
        stats, seen = handle.stats(), handle.activity()
    hook.remove()
    checks = [q for q in fed if q < TEXT.shape[1]]
    assert max(checks) > 1, "a draft was checked"
    assert (seen.eligible, seen.exact) == (len(checks), checks.count(1))
    drafted = [q for q in checks if q > 1]
    assert [layer.steps for layer in stats] == [len(drafted)] * 2
    assert stats[0].rows == sum(drafted) / len(drafted)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "sere"]
    assert "assisted decoding (prompt lookup, a draft model) checks several tokens" in line
    assert "neither that of the unmodified model nor that of plain decoding with re-routing" in line


def test_nothing_changes_where_all_slots_are_primary(model: PreTrainedModel) -> None:
    """S = K leaves assisted decoding bit for bit as it was."""
    options = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    plain = generate(model, **options)
    with integration.apply(model, random_table(model), select_top_k=4):
        assert torch.equal(generate(model, **options), plain)


def test_a_protected_text_keeps_its_experts(model: PreTrainedModel) -> None:
    """The budget of a row holds for each of its positions in a check."""
    options = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    plain = generate(model, **options)
    with integration.apply(model, random_table(model), active_experts=0) as handle:
        handle.row_budgets = [4]
        assert torch.equal(generate(model, **options), plain)
        assert handle.stats()[0].slots_rerouted == 0
        handle.row_budgets = None
        assert not torch.equal(generate(model, **options), plain)
