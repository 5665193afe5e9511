"""Blocks of decode steps from one prefilled state."""

from __future__ import annotations

import pytest

from sere.bench.stepper import Stepper
from sere.bench.target import random_tokens
from sere.errors import InputError
from sere.integrations.transformers.inputs import find_cache
from tests.support.tiny import tiny_model


def test_blocks_start_from_the_same_state_and_do_not_time_the_first_step() -> None:
    """A block decodes the given tokens from the prefilled state, however often it is run."""
    model = tiny_model("qwen3_moe")
    tokens = random_tokens(model, 3, 9)
    stepper = Stepper(model, tokens[:, :4], tokens[:, 4:])
    seen: list[int] = []
    hook = model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(find_cache(kwargs).get_seq_length()), with_kwargs=True
    )
    blocks = [stepper.block(), stepper.block()]
    hook.remove()
    assert seen == [4, 5, 6, 7, 8] * 2
    assert [len(block) for block in blocks] == [4, 4]
    with pytest.raises(InputError, match="at least 2 tokens per row, got 1"):
        Stepper(model, tokens[:, :4], tokens[:, 4:5])
