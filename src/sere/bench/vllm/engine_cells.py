"""Engines that are alive at the same time, and one load timed in all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from sere.bench.timing import turns
from sere.bench.vllm.blocks import EngineBlock
from sere.bench.vllm.engine_groups import EngineGroup
from sere.bench.vllm.engine_loads import EngineLoad
from sere.bench.vllm.session import Session
from sere.errors import EngineFailure, SereError

T = TypeVar("T")

StartSession = Callable[[EngineGroup], AbstractContextManager[Session]]
"""Starts an engine, and ends it."""

OnFailure = Callable[[str, SereError], object]
"""Is told what failed, and why."""


@dataclass(slots=True)
class Failures:
    """What failed, so that nothing waits for it.

    Attributes:
        tell: Is called with each failure.
        engines: Names of the engines that failed.
        loads: Names of engines, with loads that failed in them.
    """

    tell: OnFailure
    engines: set[str] = field(default_factory=set)
    loads: set[tuple[str, str]] = field(default_factory=set)

    def has(self, engine: EngineGroup, load: EngineLoad) -> bool:
        """Whether a load has failed in an engine, or the engine itself."""
        return engine.name in self.engines or (engine.name, load.label) in self.loads

    def add(self, engine: EngineGroup, load: EngineLoad | None, error: SereError) -> None:
        """Note a failure: of the engine, unless it refused the load alone."""
        if load is None or isinstance(error, EngineFailure):
            self.engines.add(engine.name)
        else:
            self.loads.add((engine.name, load.label))
        self.tell(engine.name if load is None else f"{engine.name}, {load.label}", error)


@dataclass(slots=True)
class _Timed:
    """An engine that takes turns."""

    engine: EngineGroup
    session: Session
    labels: Sequence[str]
    counts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    blocks: dict[str, list[EngineBlock]] = field(default_factory=dict)

    def cell(self) -> dict[str, Any]:
        """Return what is kept, JSON-ready."""
        return {
            "described": self.session.describe(),
            "counts": self.counts,
            "blocks": {label: [asdict(block) for block in blocks] for label, blocks in self.blocks.items()},
        }


class AliveEngines:
    """Engines that are alive at the same time; one that fails is left out from then on.

    Args:
        sessions: By engine.
        failures: Where failures are noted.
    """

    def __init__(self, sessions: Sequence[tuple[EngineGroup, Session]], failures: Failures) -> None:
        self._sessions, self._failures = sessions, failures

    @property
    def names(self) -> list[str]:
        """Names of the engines."""
        return [engine.name for engine, _ in self._sessions]

    def time(self, load: EngineLoad, visit: int, rounds: Sequence[int]) -> dict[str, dict[str, Any]]:
        """Time a load; return by engine what is kept of it.

        Args:
            load: What the engines are given.
            visit: Number of the visit; at the first one experts are counted.
            rounds: Numbers of the rounds; in each, every way to run an engine is timed once.
        """
        timed = [
            _Timed(engine, session, labels)
            for engine, session in self._sessions
            if not self._failures.has(engine, load)
            and (labels := self._try(engine, load, lambda: session.open(load))) is not None  # noqa: B023
        ]
        ways = [(one, label) for one in timed for label in one.labels]
        for one, label in ways:
            self._prepare(one, label, load, count=visit == 0)
        for number in rounds if ways else ():
            for one, label in turns(ways, number):
                if not self._failures.has(one.engine, load):
                    block = self._try(one.engine, load, lambda: one.session.block(label))  # noqa: B023
                    if block is not None:
                        one.blocks.setdefault(label, []).append(block)
        # In the order of the labels, the baseline first: a round may begin with any of them.
        for one in timed:
            one.blocks = {label: one.blocks[label] for label in one.labels if label in one.blocks}
        return {one.engine.name: one.cell() for one in timed if not self._failures.has(one.engine, load)}

    def _prepare(self, one: _Timed, label: str, load: EngineLoad, *, count: bool) -> None:
        """Run a block that is not timed."""
        if self._failures.has(one.engine, load):
            return
        if count:
            counts = self._try(one.engine, load, lambda: one.session.count(label))
            one.counts[label] = counts or {}
        else:
            self._try(one.engine, load, lambda: one.session.warm(label))

    def _try(self, engine: EngineGroup, load: EngineLoad, do: Callable[[], T]) -> T | None:
        try:
            return do()
        except SereError as error:
            self._failures.add(engine, load, error)
            return None


@contextmanager
def alive(start: StartSession, engines: Sequence[EngineGroup], failures: Failures) -> Iterator[AliveEngines]:
    """Start engines one after the other, and end them all; one that fails to start is left out.

    Args:
        start: Starts one.
        engines: Those that did not fail before are started.
        failures: Where failures are noted.
    """
    with ExitStack() as stack:
        sessions = []
        for engine in engines:
            if engine.name in failures.engines:
                continue
            try:
                sessions.append((engine, stack.enter_context(start(engine))))
            except SereError as error:
                failures.add(engine, None, error)
        yield AliveEngines(sessions, failures)
