"""When pairs are faster than all slots: measured once, on the expert kernel that will run."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from sere.flatten.pairs import Pairs, find_pairs

logger = logging.getLogger("sere")

ROWS = (1, 4, 8, 16, 32, 64)
"""Numbers of rows that are measured."""
ROUNDS = 5
MARGIN = 0.03
"""Share of the time of all slots by which pairs must be faster."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Up to which share of a step's slots pairs are faster than all slots.

    Attributes:
        shares: 0 to 1, for steps of `ROWS` rows.
    """

    shares: tuple[float, ...]

    def most_pairs(self, T: int, K: int) -> int:
        """Return up to how many pairs are faster than all slots of a step.

        Between two measured numbers of rows, the smaller of their shares holds; beyond the last, the last.

        Args:
            T: Rows.
            K: Slots per row.
        """
        after = min(bisect_left(ROWS, T), len(ROWS) - 1)
        before = after if ROWS[after] <= T else after - 1
        return int(min(self.shares[before], self.shares[after]) * T * K)

    def points(self) -> list[list[float]]:
        """Return each measured number of rows with its share."""
        return [[rows, share] for rows, share in zip(ROWS, self.shares, strict=True)]

    def describe(self) -> str:
        """Return the shares in words, for a log line."""
        return ", ".join(
            f"{100 * share:.0f} % at {rows} row{'s' * (rows > 1)}"
            for rows, share in zip(ROWS, self.shares, strict=True)
        )


_KNOWN: dict[Hashable, Costs] = {}


def costs_of(key: Hashable, measured: Callable[[], Costs], *, log: bool = True) -> Costs:
    """Return what was measured for a kind of layer in this process; measure at its first use.

    Args:
        key: What the times depend on, but for the number of threads.
        measured: Measures.
        log: Whether the logger ``sere`` says what was measured.
    """
    key = (key, torch.get_num_threads())
    if key not in _KNOWN:
        _KNOWN[key] = measured()
        if log:
            logger.info("sere: flattening is faster up to a share of the slots of %s", _KNOWN[key].describe())
    return _KNOWN[key]


def break_even(slots: float, half: float, full: float, *, kept: int, K: int) -> float:
    """Return up to which share of the slots pairs are faster, from three times.

    The time of pairs is taken as a straight line in their number.

    Args:
        slots: Time of all slots, in any unit.
        half: Time of ``kept`` pairs per row.
        full: Time of K pairs per row.
        kept: At least 1 and less than K.
        K: Slots per row.

    Returns:
        A share from 0 to 1.
    """
    aim, per_pair = slots * (1 - MARGIN), (full - half) / (K - kept)
    if per_pair <= 0:
        return kept / K if half <= aim else 0.0
    return min(1.0, max(0.0, (kept + (aim - half) / per_pair) / K))


def measure(
    all_slots: Callable[[Tensor, Tensor], object],
    pairs: Callable[[Pairs, int], object],
    *,
    E: int,
    K: int,
    ids_dtype: torch.dtype,
    weights_dtype: torch.dtype,
) -> Costs:
    """Time an expert kernel on all slots of steps of `ROWS` rows, on all and on half of them as pairs.

    Each run takes the next experts, so that their weights are no more in the caches than in a model. It takes
    as many of them as the default settings of a table without tiers let a step read, and half of the slots
    name all of them: slots that are given up save arithmetic, and no reading. Slots are spread evenly. Rows
    of a step prefer some experts, which then compute more rows at once, so that pairs gain somewhat more than
    is measured: this errs on the side of all slots.

    Args:
        all_slots: Computes ids and weights, ``[T, K]``.
        pairs: Computes pairs of T rows, gathering and summing included.
        E: Experts of the layer.
        K: Slots per row.
        ids_dtype: Of the ids.
        weights_dtype: Of the weights.
    """
    kept = K // 2
    if kept == 0:
        return Costs((0.0,) * len(ROWS))
    shares, first = [], 0
    for T in ROWS:
        distinct = min(E, math.ceil(K * (1 + 0.75 * math.log2(T))), T * kept)
        best = [math.inf] * 3
        for _ in range(ROUNDS):
            for index, columns in enumerate((K, kept, K)):
                named = (first + torch.arange(T * columns) % distinct) % E
                first += distinct
                ids = named.view(T, columns).to(ids_dtype)
                weights = torch.full((T, columns), 1 / K, dtype=weights_dtype)
                every = Pairs(
                    torch.arange(T).repeat_interleave(columns), ids.view(-1, 1), weights.view(-1, 1)
                )
                started = perf_counter()
                if index == 0:
                    all_slots(ids, weights)
                else:
                    # What a step does to find its pairs; these have an expert in a row twice on purpose.
                    find_pairs(ids, weights)
                    pairs(every, T)
                best[index] = min(best[index], perf_counter() - started)
        shares.append(break_even(*best, kept=kept, K=K))
    return Costs(tuple(shares))
