"""Decode groups of B rows with the model's own ``generate``, which works with every cache (static batching).

``generate`` knows how each architecture makes its cache, masks and positions: sliding windows, states of
linear attention, compressed keys. It cannot give the row of a text that has ended to the next text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from sere.eval.decoding.prefill import pad_left


@dataclass(frozen=True, slots=True)
class Forced:
    """A row whose tokens are given.

    Attributes:
        read: What prefill reads.
        fed: What the decode steps are fed, one token per step, at least one; after the last, the first again.
    """

    read: Sequence[int]
    fed: Sequence[int]


def end_mark(model: Any, stop: frozenset[int]) -> int:
    """Return the token that is fed to rows that have ended, by which re-routing recognizes them.

    Args:
        model: The model, with its generation settings.
        stop: Ids that end a text.
    """
    from sere.integrations.transformers.apply import finished_token

    found = finished_token(model)
    return min(stop, default=0) if found is None else found


def continue_groups(
    model: Any,
    prompts: Sequence[Sequence[int]],
    B: int,
    *,
    max_new_tokens: int,
    stop: frozenset[int],
    pad_token_id: int,
    on_finished: Callable[[int, list[int]], object],
) -> list[float]:
    """Continue prompts greedily in groups of B rows that wait for their longest answer.

    If the prompts do not fill the last group, prompts from the beginning do; their second answers are
    discarded.

    Args:
        model: A causal language model of Transformers.
        prompts: Token ids, at least one each.
        B: Rows of a step, at most as many as there are prompts.
        max_new_tokens: Most tokens of an answer.
        stop: Ids that end an answer.
        pad_token_id: Fed to rows that have ended.
        on_finished: Called with each prompt's index and its new tokens, including those after its end.

    Returns:
        The time of each decode step in ms, without prefill.
    """
    step_ms: list[float] = []
    for indices in groups(len(prompts), B):
        clock = _Clock()
        ids, mask = pad_left([prompts[index] for index in indices], model.device)
        with _plain_settings(model):
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(stop) or None,
                pad_token_id=pad_token_id,
                stopping_criteria=[clock],
            )
        step_ms += clock.step_ms
        for index, tokens in zip(indices, output[:, ids.shape[1] :].tolist(), strict=True):
            if index >= indices[0]:
                on_finished(index, tokens)
    return step_ms


def force(model: Any, rows: Sequence[Forced], steps: int, see: Callable[[int, Tensor], object]) -> None:
    """Feed a group of rows the tokens that are given.

    Args:
        model: A causal language model of Transformers.
        rows: The rows of the group.
        steps: How many times logits are shown.
        see: Called with a step's number and logits ``[B, V]``: step 0 is prefill, whose logits predict the
            rows' first fed tokens; those of step s predict token s.
    """
    ids, mask = pad_left([row.read for row in rows], model.device)
    with _plain_settings(model):
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=steps,
            do_sample=False,
            logits_processor=[_Teacher([row.fed for row in rows], see)],
        )


def groups(count: int, B: int) -> Iterator[list[int]]:
    """Yield the indices of each group of B; the last group is filled up from the beginning."""
    for first in range(0, count, B):
        yield [index % count for index in range(first, first + B)]


class _Teacher:
    """Chooses the given tokens, whatever the logits are, and shows these."""

    def __init__(self, fed: Sequence[Sequence[int]], see: Callable[[int, Tensor], object]) -> None:
        self.fed, self.see = fed, see
        self.step = 0

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        self.see(self.step, scores)
        wanted = [tokens[self.step % len(tokens)] for tokens in self.fed]
        self.step += 1
        chosen = torch.full_like(scores, float("-inf"))
        chosen[torch.arange(len(wanted), device=scores.device), wanted] = 0
        return chosen


class _Clock:
    """A stopping criterion that never stops: called once per step, it takes the time between calls."""

    def __init__(self) -> None:
        self.last: float | None = None
        self.step_ms: list[float] = []

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        now = perf_counter()
        if self.last is not None:
            self.step_ms.append((now - self.last) * 1e3)
        self.last = now
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@contextmanager
def _plain_settings(model: Any) -> Iterator[None]:
    """Let ``generate`` take the most likely token, without penalties or bans of the checkpoint's settings."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
