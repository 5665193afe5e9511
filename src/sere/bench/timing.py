"""Time decode steps of several settings in one run, in blocks that take turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import TypeVar

import torch

from sere.errors import InputError

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
        """Return the time per output token of a request: a decode step yields one token per row."""
        return spread([ms for block in self.blocks for ms in block])

    def speedup_over(self, baseline: Times) -> Spread:
        """Return how many times faster this is: per round, the baseline's median step over this one's."""
        pairs = zip(baseline.blocks, self.blocks, strict=True)
        return spread([median(base) / median(mine) for base, mine in pairs])


def turns(variants: Sequence[T], round_index: int) -> list[T]:
    """Return the order in which variants are timed in one round.

    A round goes forward and the next one backward from the same start; the two after them start with the next
    variant. So every variant is first in turn, and runs after different ones.

    Args:
        variants: What takes turns.
        round_index: Number of the round, from 0.
    """
    start = round_index // 2 % len(variants)
    order = [*variants[start:], *variants[:start]]
    return order[::-1] if round_index % 2 else order


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


def interleave(
    block: Callable[[], list[float]],
    variants: Sequence[Callable[[], AbstractContextManager[object]]],
    *,
    rounds: int,
    on_block: Callable[[], object] = lambda: None,
) -> list[Times]:
    """Run a block under each variant in turn, ``rounds`` times, and return the variants' times.

    So slow changes of the machine (frequency, other load) affect all variants alike. Their order is that of
    `turns`. A first round, not kept, warms up.

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
    for round_index in range(rounds + 1):
        for index in turns(range(len(variants)), round_index):
            with variants[index]():
                measured = block()
            if round_index > 0:
                times[index].blocks.append(measured)
            on_block()
    return times
