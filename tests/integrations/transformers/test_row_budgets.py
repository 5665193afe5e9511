"""Which rows of a step vote: not padding, not finished sequences, and protected ones stay exact."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from tests.support.decoding import decode, prefilled, prompts, random_table, recorded, step

PAD, END = 0, 2


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
    # Pairs or not is decided by measured times; here the experts' calls are read.
    integration.apply(model, random_table(model), select_top_k=1, flatten="off")
    calls = recorded(model)
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
    calls = recorded(model)
    step(model, feed, prefilled(model, tokens))
    plain_ids, plain_weights = calls[1]
    with integration.apply(model, table, active_experts=0, flatten="off") as handle:
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
