"""Which argument is what: a cache is known by what it can do, tokens by dtype and shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

import sere.integrations.transformers as integration
from sere.errors import InputError
from sere.integrations.transformers.inputs import (
    FILLED,
    cache_argument,
    find_cache,
    past_length,
    read_call,
)
from sere.reroute.constants import LAYER_BUDGET
from tests.support.decoding import decode, prompts, random_table
from tests.support.tiny import tiny_model


class Sized:
    """A cache of a given length."""

    def __init__(self, length: int | Tensor) -> None:
        self.length = length

    def __len__(self) -> int:
        """An empty cache counts as false."""
        return 0

    def get_seq_length(self) -> int | Tensor:
        """Positions in the cache."""
        return self.length


class Recurrent:
    """A cache of linear attention alone, which raises as Transformers' does."""

    def __init__(self, filled: bool) -> None:
        self.filled = filled

    def get_seq_length(self) -> int:
        """There is no length."""
        raise ValueError("only LinearAttention layers")

    def has_previous_state(self) -> bool:
        """Whether a step has been taken."""
        return self.filled


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params", "kv", "state_of_the_past"])
def test_a_cache_is_found_under_any_name(name: str) -> None:
    """Also an empty one, which is false in a condition; a known name goes first."""
    cache = Sized(0)
    assert find_cache({"input_ids": torch.ones(2, 3), "use_cache": True, name: cache}) is cache
    assert find_cache({"draft": Sized(9), "past_key_values": cache}) is cache
    assert find_cache({"input_ids": torch.ones(2, 3), "past_key_values": None}) is None


def test_lengths_of_every_kind_of_cache() -> None:
    """Integers, tensors that the host must not read, pairs of caches, and states without a length."""
    length = torch.tensor(4)
    assert past_length(None) == 0
    assert past_length(Sized(3)) == 3
    assert past_length(Sized(length)) is length
    pair = EncoderDecoderCache(DynamicCache(), DynamicCache())
    assert past_length(pair) == 0
    assert (past_length(Recurrent(True)), past_length(Recurrent(False))) == (FILLED, 0)


def test_a_recurrent_past_reads_the_mask_at_its_end() -> None:
    """Without a length the last columns are this step's."""
    handle = integration.apply(tiny_model("qwen3_moe"), random_table(tiny_model("qwen3_moe")), select_top_k=1)
    current = handle._call
    current.enter({"input_ids": torch.ones(2, 1).long(), "cache": Recurrent(True),
                "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])})  # fmt: skip
    assert current.active
    assert current.budget is not None
    assert current.budget.tolist() == [-1, LAYER_BUDGET]
    current.leave()
    handle.quiet = True
    handle.remove()


def test_tokens_are_found_under_another_name() -> None:
    """An integer tensor [B, q], or embeddings [B, q, H], that is neither mask nor position."""
    call = read_call({"attention_mask": torch.ones(2, 9).long(), "tokens": torch.ones(2, 3).long()}, None)
    assert (call.B, call.q) == (2, 3)
    call = read_call({"position_ids": torch.ones(4, 7).long(), "hidden": torch.ones(2, 5, 8)}, None)
    assert (call.B, call.q, call.tokens) == (2, 5, None)
    assert read_call({}, None).q == 0


def test_what_a_module_inside_is_not_told_comes_from_the_call_around_it() -> None:
    """Vision models hand embeddings on: the tokens, the mask and the wanted logits are the outer call's."""
    tokens, mask, cache = torch.ones(1, 3).long(), torch.ones(1, 8), Sized(5)
    outer = read_call(
        {"input_ids": tokens, "attention_mask": mask, "cache": cache, "logits_to_keep": 3}, None
    )
    inner = read_call({"inputs_embeds": torch.ones(1, 3, 4), "attention_mask": torch.ones(1, 1, 3, 8)}, outer)
    assert inner.tokens is tokens
    assert inner.mask is mask
    assert (inner.cache, inner.kept) == (cache, 3)
    other = read_call({"inputs_embeds": torch.ones(1, 2, 4)}, outer)
    assert other.tokens is None, "tokens of another shape are other tokens"


def padded() -> tuple[Tensor, Tensor]:
    tokens, mask = prompts(), torch.ones(6, 5, dtype=torch.long)
    tokens[2, :3], mask[2, :3] = 0, 0
    return tokens, mask


@pytest.mark.parametrize("cache", [None, "static"], ids=["growing", "static"])
def test_all_phases_with_padding_change_nothing_where_all_slots_are_primary(cache: str | None) -> None:
    """phases="all", left padding, S = K: bit for bit the model as it is, whatever the cache is called."""
    model = tiny_model("qwen3_moe")
    tokens, mask = padded()
    options: dict[str, Any] = {"attention_mask": mask, "cache_implementation": cache}
    plain, logits = decode(model, tokens, **options)
    with integration.apply(model, random_table(model), select_top_k=4, phases="all") as handle:
        same, same_logits = decode(model, tokens, **options)
        # A static cache comes with a mask of another form, from which a prompt's padding is not read.
        assert handle.stats()[0].rows == ((30 if cache else 27) + 5 * 6) / 6
    assert torch.equal(same, plain)
    assert torch.equal(same_logits, logits)


def test_budgets_of_the_wrong_length_are_refused_in_generate() -> None:
    """The steps of ``generate`` are seen as steps, so their rows are counted."""
    model: PreTrainedModel = tiny_model("qwen3_moe")
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        handle.quiet = True
        handle.row_budgets = [1, 1]
        with pytest.raises(
            InputError, match="row_budgets: expected one integer per row, 6 for this step, got 2"
        ):
            decode(model, prompts())


def test_the_cache_is_handed_over_by_the_name_of_the_release() -> None:
    """Our own calls do not use a name that the installed Transformers warns of."""
    model = tiny_model("qwen3_moe")
    cache = DynamicCache(config=model.config)
    ((name, given),) = cache_argument(model, cache).items()
    assert given is cache
    assert name in type(model).forward.__code__.co_varnames or name in ("cache", "past_key_values")
    with torch.no_grad():
        model(prompts(), **cache_argument(model, cache))
    assert cache.get_seq_length() == 5


def test_the_cache_may_be_given_by_position() -> None:
    """Positional arguments are read by the names of the model's ``forward``."""
    model = tiny_model("qwen3_moe")
    with integration.apply(model, random_table(model), select_top_k=1) as handle, torch.no_grad():
        cache = find_cache(model(prompts()))
        model(prompts(6, 1), None, None, cache)
        assert handle.stats()[0].steps == 1


@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")
def test_the_old_name_of_the_cache_is_seen_in_every_release() -> None:
    """``past_key_values=``, of which Transformers 5.24 warns, still makes a decode step."""
    model = tiny_model("qwen3_moe")
    with integration.apply(model, random_table(model), select_top_k=1) as handle, torch.no_grad():
        cache = find_cache(model(prompts()))
        model(prompts(6, 1), past_key_values=cache)
        assert [layer.steps for layer in handle.stats()] == [1, 1]
