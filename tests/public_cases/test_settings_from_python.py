"""Somebody gives settings that came out of NumPy, a tensor or a generation config."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import sere
from sere.errors import InputError
from tests.support.decoding import prompts, random_table
from tests.support.tiny import tiny_model


def test_settings_that_are_numpys_numbers() -> None:
    """They are numbers, and Python's own from then on: JSON takes them."""
    config = sere.RerouteConfig(
        select_top_k=np.int64(2), active_experts=np.int32(4), threshold=np.float32(0.5)
    )
    assert json.loads(json.dumps(config.to_mapping()))["threshold"] == 0.5
    assert (type(config.select_top_k), type(config.active_experts)) == (int, int)


@pytest.mark.parametrize("pad", ["0", [0], 0.0, True])
def test_a_pad_token_that_is_not_one_token(pad: Any) -> None:
    """It is refused when it is given, not in the first step."""
    model = tiny_model("qwen3_moe")
    with pytest.raises(InputError, match="pad_token_id: expected one token id"):
        sere.apply(model, random_table(model), select_top_k=1, pad_token_id=pad)


@pytest.mark.parametrize("end", [[], torch.tensor([2, 3]), torch.tensor(2)], ids=["none", "two", "one"])
def test_end_tokens_of_any_form(end: Any) -> None:
    """``generate`` takes them, so ``apply`` does."""
    model = tiny_model("qwen3_moe")
    model.generation_config.pad_token_id = None
    model.generation_config.eos_token_id = end
    with sere.apply(model, random_table(model), select_top_k=1) as handle:
        model.generate(prompts(), max_new_tokens=3, do_sample=False, eos_token_id=2, pad_token_id=2)
    assert handle.stats()[0].steps == 2
