"""Which engines a timing needs, which of them can be alive at once, and in which order they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from sere.bench.timing import turns
from sere.policies.spec import PolicySpec
from sere.summaries import pairs


@dataclass(frozen=True, slots=True)
class Target:
    """A checkpoint that engines load.

    Attributes:
        model: Its folder.
        table: Its similarity table.
        subject: What a reader must know of both; JSON-ready, with ``layers``.
    """

    model: Path
    table: Path
    subject: Mapping[str, Any]

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights."""
        return sum(path.stat().st_size for path in self.model.glob("*.safetensors"))


@dataclass(frozen=True, slots=True)
class EngineGroup:
    """Settings that share an engine.

    Attributes:
        target: What the engine loads.
        settings: What takes turns in it, ``off`` first; none for an engine that never loads the plug-in.
        start: Settings of re-routing that it starts with, other than those that change while it runs.
    """

    target: Target
    settings: Sequence[PolicySpec]
    start: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What tells it from the other engines of its target."""
        return ", ".join(pairs(self.start)) or ("sere" if self.settings else "vanilla")

    @property
    def name(self) -> str:
        """What messages and the file of finished cells call it."""
        return f"engine {self.kind} of {self.target.subject['layers']} layers"


def engine_bytes(group: EngineGroup) -> int:
    """Return about how much memory a running engine takes on a CPU: weights, KV cache, code."""
    return int(1.15 * group.target.weight_bytes) + 2 * 2**30


def alive_together(groups: Sequence[EngineGroup], room: int | None) -> list[list[EngineGroup]]:
    """Return the engines, together with those that are alive at the same time.

    Args:
        groups: In the order in which they are to be started.
        room: Bytes that engines may take; None where only one may run at a time.
    """
    waves: list[list[EngineGroup]] = []
    left = 0
    for group in groups:
        needs = engine_bytes(group)
        if not waves or room is None or needs > left:
            waves.append([])
            left = 0 if room is None else room
        waves[-1].append(group)
        left -= needs
    return waves


def visiting_order(
    waves: Sequence[Sequence[EngineGroup]], visits: int
) -> list[tuple[Sequence[EngineGroup], list[int]]]:
    """Return which engines are started one after the other, with the numbers of the visits that they serve.

    If not all can be alive at once, each is started again for each visit, and the order turns around, so that
    slow changes of the machine affect all alike. Engines that are last in one visit and first in the next
    stay alive.

    Args:
        waves: Engines that are alive at the same time.
        visits: How often each is to be visited.
    """
    order = [(index, visit) for visit in range(visits) for index in turns(range(len(waves)), visit)]
    return [
        (waves[index], [visit for _, visit in same]) for index, same in groupby(order, key=lambda one: one[0])
    ]
