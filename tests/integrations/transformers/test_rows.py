"""Which rows of a step vote: not padding, not finished sequences, and protected ones stay exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

import sere.integrations.transformers as integration
from sere.errors import InputError
from sere.integrations.transformers.call import CurrentCall
from sere.integrations.transformers.guard import Guard
from sere.integrations.transformers.inputs import cache_argument
from sere.policies import TopK
from sere.structure import find_experts
from tests.support.decoding import decode, prompts, random_table
from tests.support.tiny import tiny_model

PAD, END = 0, 2


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("qwen3_moe")


def routed(model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Record the ids and weights that the first experts module runs on, call by call."""
    calls: list[tuple[Tensor, Tensor]] = []
    module = find_experts(model)[0].module
    forward = type(module).forward

    def record(*args: Any) -> Tensor:
        calls.append((args[1].clone(), args[2].clone()))
        return forward(module, *args)

    module.forward = record
    return calls


def prefilled(model: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens, attention_mask=mask, **cache_argument(model, cache))
    return cache


def step(model: PreTrainedModel, tokens: Tensor, cache: DynamicCache, **inputs: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(tokens, **cache_argument(model, cache), **inputs).logits
    return logits


def test_finished_sequences_do_not_vote(model: PreTrainedModel) -> None:
    """A row that has ended is fed pads by ``generate`` and counts no more: 6 rows a step, then 5."""
    tokens = prompts()
    plain, _ = decode(model, tokens)
    # The token that the first row generates second becomes the end token.
    model.generation_config.eos_token_id = int(plain[0, 6])
    model.generation_config.pad_token_id = PAD
    handle = integration.apply(model, random_table(model), select_top_k=4)
    sequences, _ = decode(model, tokens)
    assert sequences[0, 7:].tolist() == [PAD] * 4
    ended = sum(int((row[5:-1] == PAD).sum()) for row in sequences)
    stats = handle.stats()[0]
    assert ended >= 3
    assert stats.rows == (6 * stats.steps - ended) / stats.steps


def test_pad_and_end_may_be_one_token(model: PreTrainedModel) -> None:
    """Without a pad token ``generate`` feeds the end token to finished rows: these do not vote either."""
    tokens = prompts()
    plain, _ = decode(model, tokens)
    end = int(plain[0, 6])
    model.generation_config.eos_token_id = [end, 95]
    model.generation_config.pad_token_id = None
    handle = integration.apply(model, random_table(model), select_top_k=4)
    sequences, _ = decode(model, tokens, pad_token_id=end)
    ended = sum(int((row[5:-1] == end).sum()) for row in sequences)
    stats = handle.stats()[0]
    assert ended >= 4
    assert stats.rows == (6 * stats.steps - ended) / stats.steps


def test_without_an_end_token_no_row_is_ever_finished(model: PreTrainedModel) -> None:
    """Where nothing can end, a generated pad token is a token like others."""
    model.generation_config.eos_token_id = None
    handle = integration.apply(model, random_table(model), select_top_k=4)
    tokens = prompts(3)
    cache = prefilled(model, tokens)
    step(model, torch.tensor([[PAD], [5], [PAD]]), cache)
    assert handle.stats()[0].rows == 3


@pytest.mark.parametrize(("pad", "rows"), [(7, 2), (-1, 3)], ids=["given", "switched off"])
def test_the_pad_token_may_be_given(model: PreTrainedModel, pad: int, rows: int) -> None:
    """``pad_token_id`` goes before the generation config, and -1 takes no row for finished."""
    model.generation_config.eos_token_id = END
    handle = integration.apply(model, random_table(model), select_top_k=4, pad_token_id=pad)
    cache = prefilled(model, prompts(3))
    step(model, torch.tensor([[7], [5], [6]]), cache)
    assert handle.stats()[0].rows == rows


def test_a_finished_row_has_no_part_in_the_choice(model: PreTrainedModel) -> None:
    """What the others run on is the same whatever cache a finished row drags along; its weights are 0."""
    model.generation_config.eos_token_id = END
    integration.apply(model, random_table(model), select_top_k=1)
    calls = routed(model)
    tokens, other = prompts(4), prompts(4)
    other[1] = 94 - other[1] + 3
    for text in (tokens, other):
        step(model, torch.tensor([[8], [PAD], [9], [10]]), prefilled(model, text))
    (ids, weights), (other_ids, other_weights) = calls[1], calls[3]
    assert torch.equal(ids, other_ids)
    assert torch.equal(weights[[0, 2, 3]], other_weights[[0, 2, 3]])
    assert not weights[1].any()
    assert set(ids[1].tolist()) <= set(ids[[0, 2, 3]].flatten().tolist())


def test_rows_that_the_mask_hides_do_not_vote(model: PreTrainedModel) -> None:
    """A 0 in this step's column of the attention mask makes the row padding."""
    handle = integration.apply(model, random_table(model), select_top_k=4)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 5] = 0
    cache = prefilled(model, prompts(3))
    step(model, torch.tensor([[8], [9], [10]]), cache, attention_mask=mask)
    assert handle.stats()[0].rows == 2


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
    state = CurrentCall(guard, all_phases=False, pad_token_id=None, default_budget=2)
    state.enter({"input_ids": torch.ones(3, 1), "attention_mask": mask, "past_key_values": CacheOf(length)})
    assert state.active
    assert state.budget is not None
    assert state.budget.tolist() == [2, -1, 2]


@pytest.mark.parametrize("length", [0, 5])
def test_checks_of_drafts_in_a_static_cache(length: int) -> None:
    """Whether the cache is filled is decided on the device: all of the text's positions are rows, or none."""
    state = CurrentCall(Guard(TopK(1), model="m", top_k=4, num_experts=16), all_phases=False,
                 pad_token_id=1, default_budget=2)  # fmt: skip
    call = {"input_ids": torch.ones(1, 3).long(), "cache": CacheOf(torch.tensor(length)), "logits_to_keep": 3}
    state.enter(call)
    assert state.active
    assert state.rows == 3
    assert state.num_tokens is not None
    assert state.num_tokens.item() == (3 if length else 0)
    assert state.budget is None, "a draft may hold the pad token as a word"
    state.leave()
    for other in ({"input_ids": torch.ones(2, 3).long()}, {"logits_to_keep": 1}, {"logits_to_keep": 0}):
        state.enter(call | other)
        assert not state.active, "several texts, or other logits: no check of drafts"
        state.leave()


def test_left_padding_leaves_all_rows_voting(model: PreTrainedModel) -> None:
    """Padding before a prompt is padding of the prefill; each row counts in decode steps; S = K is exact."""
    tokens, mask = prompts(), torch.ones(6, 5, dtype=torch.long)
    tokens[2, :3], mask[2, :3] = PAD, 0
    plain, logits = decode(model, tokens, attention_mask=mask)
    with integration.apply(model, random_table(model), select_top_k=4) as handle:
        same, same_logits = decode(model, tokens, attention_mask=mask)
        assert handle.stats()[0].rows == 6
    assert torch.equal(plain, same)
    assert torch.equal(logits, same_logits)


def test_a_protected_row_keeps_its_experts(model: PreTrainedModel) -> None:
    """A budget of K: the row's ids and weights are the router's, while other rows are re-routed."""
    table, tokens = random_table(model), prompts(4)
    feed = torch.tensor([[8], [9], [10], [11]])
    calls = routed(model)
    step(model, feed, prefilled(model, tokens))
    plain_ids, plain_weights = calls[1]
    with integration.apply(model, table, select_top_k=1) as handle:
        handle.row_budgets = [1, 4, 1, 1]
        assert handle.row_budgets is not None
        step(model, feed, prefilled(model, tokens))
        handle.row_budgets = None
        step(model, feed, prefilled(model, tokens))
    (ids, weights), (free_ids, _) = calls[3], calls[5]
    assert torch.equal(ids[1], plain_ids[1])
    assert torch.equal(weights[1], plain_weights[1])
    assert not torch.equal(ids[[0, 2, 3]], plain_ids[[0, 2, 3]])
    assert not torch.equal(free_ids[1], plain_ids[1])


def test_a_negative_budget_marks_a_row_as_finished(model: PreTrainedModel) -> None:
    """Decoding loops of one's own can say which rows have ended."""
    handle = integration.apply(model, random_table(model), select_top_k=4)
    handle.row_budgets = torch.tensor([4, -1, 4])
    step(model, torch.tensor([[8], [9], [10]]), prefilled(model, prompts(3)))
    assert handle.stats()[0].rows == 2


def test_budgets_of_the_wrong_length_are_refused(model: PreTrainedModel) -> None:
    """The text names the rows of the step and the number of budgets; the model works again afterward."""
    handle = integration.apply(model, random_table(model), select_top_k=1)
    handle.row_budgets = [4, 4]
    cache = prefilled(model, prompts(3))
    feed = torch.tensor([[8], [9], [10]])
    with pytest.raises(
        InputError, match=r"row_budgets: expected one integer per row, 3 for this step, got 2; set"
    ):
        step(model, feed, cache)
    handle.row_budgets = None
    step(model, feed, cache)
    assert handle.stats()[0].steps == 1


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ([0.5, 1.0], r"expected one integer per row, got 0.5 \(float\)"),
        ([[1, 2]], r"expected one integer per row, got \[1, 2\] \(list\)"),
        ([True, 2], r"expected one integer per row, got True \(bool\)"),
        (torch.tensor(3), "expected one integer per row of the batch, got torch.int64 of shape"),
        (torch.ones(3), "expected one integer per row of the batch, got torch.float32 of shape"),
    ],
    ids=["floats", "two axes", "a bool", "no axis", "a tensor of floats"],
)
def test_budgets_that_are_no_row_of_integers_are_refused(
    model: PreTrainedModel, budget: Any, text: str
) -> None:
    """Wrong dtypes and shapes are found when they are set; the budgets that held before still hold."""
    handle = integration.apply(model, random_table(model), select_top_k=1)
    handle.row_budgets = [4, 2**40]
    with pytest.raises(InputError, match=f"row_budgets: {text}"):
        handle.row_budgets = budget
    assert handle.row_budgets is not None
    assert handle.row_budgets.tolist() == [4, 2**31 - 1]


def test_all_phases_re_route_prefill_without_its_padding(model: PreTrainedModel) -> None:
    """phases="all": masked prompt positions count for nothing, budgets are repeated for each position."""
    tokens, mask = prompts(), torch.ones(6, 5, dtype=torch.long)
    tokens[2, :3], mask[2, :3] = PAD, 0
    calls = routed(model)
    with torch.no_grad():
        model(tokens, attention_mask=mask)
    with integration.apply(model, random_table(model), select_top_k=1, phases="all") as handle:
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


def test_all_phases_pass_static_and_growing_caches(model: PreTrainedModel) -> None:
    """phases="all" with ``generate``: every call is re-routed, the prefill included."""
    for cache in (None, "static"):
        with integration.apply(model, random_table(model), select_top_k=1, phases="all") as handle:
            decode(model, prompts(), cache_implementation=cache)
            stats = handle.stats()[0]
        assert (stats.steps, stats.rows) == (6, (30 + 5 * 6) / 6)


def test_a_call_of_the_decoder_alone_is_re_routed(model: PreTrainedModel) -> None:
    """Code that passes over the outermost model, as adapters and own loops do, finds the hooks inside."""
    handle = integration.apply(model, random_table(model), select_top_k=1)
    cache = prefilled(model, prompts(3))
    inner: nn.Module = model.model
    with torch.no_grad():
        inner(torch.tensor([[8], [9], [10]]), **cache_argument(inner, cache))
    assert [layer.steps for layer in handle.stats()] == [1, 1]
    assert handle.activity().calls == 2


def test_layers_called_outside_of_any_call_are_left_alone(model: PreTrainedModel) -> None:
    """Where nothing is known of the rows, nothing is changed."""
    handle = integration.apply(model, random_table(model), select_top_k=1)
    with torch.no_grad():
        model.model.layers[0].mlp(torch.ones(3, 1, 32))
    assert handle.stats()[0].steps == 0
