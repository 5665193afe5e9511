"""What it costs an engine to count the uses of each expert: the same engine with it and without, in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sere.bench.replay import REPLAY
from sere.eval.statistics.by_prompt import Estimate
from sere.eval.statistics.by_round import median_ratio
from sere.summaries import pairs

COUNTING: Mapping[str, Any] = MappingProxyType({"count_experts": True})
"""What an engine is started with so that it counts them."""


@dataclass(frozen=True, slots=True)
class CountingCost:
    """One setting under one load.

    Attributes:
        without: The record of the engine that does not count.
        counting: That of the engine that counts.
        time: The time with counting over that without, round by round: above 1 is slower. The median of the
            rounds, with an interval (at least 95 %) from six rounds on.
    """

    without: Mapping[str, Any]
    counting: Mapping[str, Any]
    time: Estimate


def counting_costs(records: Sequence[Mapping[str, Any]]) -> list[CountingCost]:
    """Return what counting costs in each case that was timed with it and without.

    Replays are left out: they take the place of what counts.

    Args:
        records: Of timed engines; of equal cases, the last one is taken.

    Raises:
        InputError: Of a case, there are not as many rounds with counting as without.
    """
    own = [record for record in records if not record["setting"].startswith(REPLAY)]
    without = {_case(record): record for record in own if not _counts(record)}
    counting = {_case(record): record for record in own if _counts(record)}
    return [
        CountingCost(without[case], record, median_ratio(record["rounds_ms"], without[case]["rounds_ms"]))
        for case, record in counting.items()
        if case in without
    ]


def _counts(record: Mapping[str, Any]) -> bool:
    start = record["config"]["start"]
    return all(start.get(name) == value for name, value in COUNTING.items())


def _case(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells records apart, but for counting."""
    subject, config = record["subject"], record["config"]
    start = {name: value for name, value in config["start"].items() if name not in COUNTING}
    engine = (str(record["provenance"]["machine"]), config["mode"], subject["layers"], *pairs(start))
    return (*engine, record["load"], record["setting"])
