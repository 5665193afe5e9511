"""Time decode steps of several settings in one run, in blocks that take turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

from sere.errors import InputError
from sere.integrations.transformers.inputs import cache_argument, find_cache

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median with the 20th and 80th percentile, in the unit of what was measured."""

    p20: float
    p50: float
    p80: float


@dataclass(slots=True)
class Times:
    """The step times of one setting.

    Attributes:
        blocks: Per round the times of its steps, in ms.
    """

    blocks: list[list[float]] = field(default_factory=list)

    def tpot_ms(self) -> Spread:
        """Return the time per output token of a request: a decode step yields one token a row."""
        return spread([ms for block in self.blocks for ms in block])

    def ratio_from(self, off: Times) -> Spread:
        """Return, over the rounds, off's median step by this setting's of that round: above 1 is faster."""
        pairs = zip(off.blocks, self.blocks, strict=True)
        return spread([median(base) / median(mine) for base, mine in pairs])


def turns(variants: Sequence[T], place: int) -> list[T]:
    """Return the order in which variants are timed in one round.

    Each round and the next go forwards and backwards from the same start, the two after them from the next
    variant, so that who goes first, and whose traces a variant finds in the caches, changes.

    Args:
        variants: What takes turns.
        place: Number of the round, from 0.
    """
    start = place // 2 % len(variants)
    order = [*variants[start:], *variants[:start]]
    return order[::-1] if place % 2 else order


def spread(values: Sequence[float]) -> Spread:
    """Return median, 20th and 80th percentile.

    Raises:
        InputError: There is no value.
    """
    if not values:
        raise InputError("spread: expected at least one value, got none")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    fifths = quantiles(values, n=5, method="inclusive")
    return Spread(fifths[0], median(values), fifths[3])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stepper:
    """Decodes given tokens from one prefilled state, as often as wanted.

    Args:
        model: A causal language model of Transformers.
        prompt: Token ids, ``[B, P]``, prefilled once.
        tokens: Token ids to decode, ``[B, n]``; n is at least 2, for the first step is never timed.
            Given, not chosen by the model: so every setting decodes the same.
    """

    def __init__(self, model: Any, prompt: Tensor, tokens: Tensor) -> None:
        if tokens.shape[1] < 2:
            raise InputError(f"steps: expected at least 2 tokens a row, got {tokens.shape[1]}")
        self.model, self.tokens = model, tokens
        with torch.no_grad():
            self.state = find_cache(model(input_ids=prompt, use_cache=True, logits_to_keep=1))

    @torch.no_grad()
    def block(self) -> list[float]:
        """Decode all tokens from the prefilled state; return the time of each step but the first, in ms."""
        given = cache_argument(self.model, deepcopy(self.state))
        device = self.tokens.device
        times = []
        for place in range(self.tokens.shape[1]):
            column = self.tokens[:, place : place + 1]
            synchronize(device)
            started = perf_counter()
            self.model(input_ids=column, use_cache=True, **given).logits.argmax(-1)
            synchronize(device)
            times.append((perf_counter() - started) * 1e3)
        return times[1:]


def interleave(
    block: Callable[[], list[float]],
    variants: Sequence[Callable[[], AbstractContextManager[object]]],
    *,
    rounds: int,
    on_block: Callable[[], object] = lambda: None,
) -> list[Times]:
    """Run a block under each variant in turn, ``rounds`` times, and return the variants' times.

    Slow changes of the machine (frequency, neighbors) so fall on all variants alike. Their
    order is that of ``turns``. A first round, not kept, warms up.

    Args:
        block: Runs some steps and returns their times in ms.
        variants: Each makes the context under which its blocks run.
        rounds: How often each runs, at least 1.
        on_block: Called after each block, for progress.

    Raises:
        InputError: ``rounds`` is not positive.
    """
    if rounds < 1:
        raise InputError(f"rounds: expected at least 1, got {rounds}")
    times = [Times() for _ in variants]
    for place in range(rounds + 1):
        for index in turns(range(len(variants)), place):
            with variants[index]():
                measured = block()
            if place > 0:
                times[index].blocks.append(measured)
            on_block()
    return times
