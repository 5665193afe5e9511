"""What a call is: a decode step, a check of drafts, or prefill; and which columns of a mask are its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.integrations.transformers.call import CurrentCall
from sere.integrations.transformers.guard import Guard
from sere.policies import TopK
from sere.reroute.constants import LAYER_BUDGET, PADDING_BUDGET
from tests.support.decoding import decode, prompts, random_table, recorded


class CacheOf:
    """A cache of which only the length is known: an integer, or a tensor as in static caches."""

    def __init__(self, length: int | Tensor) -> None:
        self.length = length

    def get_seq_length(self) -> int | Tensor:
        """Positions in the cache."""
        return self.length


@pytest.mark.parametrize("length", [5, torch.tensor(5)], ids=["growing", "static"])
@pytest.mark.parametrize("spare", [0, 4], ids=["exact", "longer"])
def test_the_mask_is_read_at_this_step_s_column(length: int | Tensor, spare: int) -> None:
    """A mask that reaches beyond the step, as for static caches, is not read at its end."""
    mask = torch.ones(3, 6 + spare)
    mask[:, 6:] = 0
    mask[1, 5] = 0
    guard = Guard(TopK(1), model="m", top_k=4, num_experts=16)
    state = CurrentCall(guard, all_phases=False, pad_token_id=None)
    state.enter({"input_ids": torch.ones(3, 1), "attention_mask": mask, "past_key_values": CacheOf(length)})
    assert state.active
    assert state.budget is not None
    assert state.budget.tolist() == [LAYER_BUDGET, PADDING_BUDGET, LAYER_BUDGET]


@pytest.mark.parametrize("length", [0, 5])
def test_checks_of_drafts_in_a_static_cache(length: int) -> None:
    """Whether the cache is filled is decided on the device: all of the text's positions are rows, or none."""
    guard = Guard(TopK(1), model="m", top_k=4, num_experts=16)
    state = CurrentCall(guard, all_phases=False, pad_token_id=1)
    call = {"input_ids": torch.ones(1, 3).long(), "cache": CacheOf(torch.tensor(length)), "logits_to_keep": 3}
    state.enter(call)
    assert state.active
    assert state.rows == 3
    assert state.num_tokens is not None
    assert state.num_tokens.item() == (3 if length else 0)
    assert state.budget is None, "a draft may hold the pad token as a word"
    state.leave()


@pytest.mark.parametrize(
    "other",
    [{"input_ids": torch.ones(2, 3).long()}, {"logits_to_keep": 1}, {"logits_to_keep": 0}],
    ids=["several texts", "the last logits", "all logits"],
)
def test_what_is_no_check_of_drafts(other: dict[str, Any]) -> None:
    """Several texts, or other logits than those of all positions: no decode step."""
    guard = Guard(TopK(1), model="m", top_k=4, num_experts=16)
    state = CurrentCall(guard, all_phases=False, pad_token_id=1)
    call = {"input_ids": torch.ones(1, 3).long(), "cache": CacheOf(torch.tensor(5)), "logits_to_keep": 3}
    state.enter(call | other)
    assert not state.active


def test_all_phases_re_route_prefill_without_its_padding(model: PreTrainedModel) -> None:
    """phases="all": masked prompt positions count for nothing, budgets are repeated for each position."""
    tokens, mask = prompts(), torch.ones(6, 5, dtype=torch.long)
    tokens[2, :3], mask[2, :3] = 0, 0
    calls = recorded(model)
    with torch.no_grad():
        model(tokens, attention_mask=mask)
    with integration.apply(
        model, random_table(model), active_experts=0, phases="all", flatten="off"
    ) as handle:
        handle.row_budgets = [1, 4, 1, 1, 1, 1]
        with torch.no_grad():
            model(tokens, attention_mask=mask)
        stats = handle.stats()[0]
    assert (stats.steps, stats.rows) == (1, 27)
    (plain, _), (ids, weights) = calls
    assert torch.equal(ids[5:10], plain[5:10]), "the second row's five positions are protected"
    assert not torch.equal(ids[15:], plain[15:])
    assert not weights[10:13].any(), "the third row's first three positions are padding"
    assert weights[13:].all()


@pytest.mark.parametrize("cache", [None, "static"], ids=["growing", "static"])
def test_all_phases_pass_static_and_growing_caches(model: PreTrainedModel, cache: str | None) -> None:
    """phases="all" with ``generate``: every call is re-routed, the prefill included."""
    with integration.apply(model, random_table(model), select_top_k=1, phases="all") as handle:
        decode(model, prompts(), cache_implementation=cache)
        stats = handle.stats()[0]
    assert (stats.steps, stats.rows) == (6, (30 + 5 * 6) / 6)
