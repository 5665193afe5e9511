"""Decode given tokens with a model of Transformers, and time each step."""

from __future__ import annotations

from copy import deepcopy
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from sere.bench.timing import synchronize
from sere.errors import InputError
from sere.integrations.transformers.inputs import cache_argument, find_cache


class Stepper:
    """Decodes given tokens from one prefilled state, as often as wanted.

    Args:
        model: A causal language model of Transformers.
        prompt: Token ids, ``[B, P]``, prefilled once.
        tokens: Token ids to decode, ``[B, n]``; n is at least 2, because the first step is never timed.
            They are given, not chosen by the model, so that every setting decodes the same.
    """

    def __init__(self, model: Any, prompt: Tensor, tokens: Tensor) -> None:
        if tokens.shape[1] < 2:
            raise InputError(f"steps: expected at least 2 tokens per row, got {tokens.shape[1]}")
        self.model, self.tokens = model, tokens
        with torch.no_grad():
            self.state = find_cache(model(input_ids=prompt, use_cache=True, logits_to_keep=1))

    @torch.no_grad()
    def block(self) -> list[float]:
        """Decode all tokens from the prefilled state; return the time of each step but the first, in ms."""
        given = cache_argument(self.model, deepcopy(self.state))
        device = self.tokens.device
        times = []
        for step in range(self.tokens.shape[1]):
            column = self.tokens[:, step : step + 1]
            synchronize(device)
            started = perf_counter()
            self.model(input_ids=column, use_cache=True, **given).logits.argmax(-1)
            synchronize(device)
            times.append((perf_counter() - started) * 1e3)
        return times[1:]
