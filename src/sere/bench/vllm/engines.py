"""Time engines of vLLM under settings of re-routing that take turns, each engine in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sere.bench.depths import Depths, describe_depths
from sere.bench.timing import Times
from sere.bench.vllm.counting import COUNTING
from sere.bench.vllm.engine_cells import Failures, OnFailure, StartSession, alive
from sere.bench.vllm.engine_groups import EngineGroup, Target, alive_together, visiting_order
from sere.bench.vllm.engine_loads import EngineLoad
from sere.bench.vllm.engine_records import MeasuredLoad, record_of
from sere.bench.vllm.serve_plan import ServePlan, refuse_controls
from sere.errors import InputError
from sere.eval.finished import FinishedCases


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginesPlan(ServePlan):
    """What to time in engines of vLLM.

    Attributes:
        loads: What they are given.
        replay: Whether to time, for each ``sere`` setting, its recorded ids and pairs, without their cost.
        vanilla: Whether to time an engine that never loaded the plug-in.
        visits: How often each engine is started if not all can be alive at once; at most the rounds.
        count_experts: Whether beside each engine with settings the same one is timed that counts the uses of
            each expert.
    """

    loads: Sequence[EngineLoad]
    replay: bool = True
    vanilla: bool = False
    visits: int = 2
    count_experts: bool = False

    def __post_init__(self) -> None:
        ServePlan.__post_init__(self)
        if self.compiled:
            refuse_controls(self.settings, "a compiled engine")
        if not self.loads or min(self.rounds, self.visits) < 1:
            raise InputError(
                "bench serve: expected a load, and rounds and visits of at least 1, got "
                f"{len(self.loads)} loads, {self.rounds} and {self.visits}"
            )

    def engines(self, targets: Sequence[Target]) -> list[EngineGroup]:
        """Return the engines that are needed, in the order in which they are started."""
        groups = self.groups()
        if self.count_experts:
            groups += [({**start, **COUNTING}, settings) for start, settings in groups]
        found: list[EngineGroup] = []
        for target in targets:
            first, *others = (EngineGroup(target, settings, start) for start, settings in groups)
            found += [first, *[EngineGroup(target, ())] * self.vanilla, *others]
        return found


class EnginesBench:
    """A timing of several engines.

    Each engine has its own ``off``, the baseline of its settings, which takes turns with them, block by
    block. As many engines as memory allows are alive at once and take turns too; the others are started
    again for each visit. A load's prompts are the same in all engines of a model.

    Args:
        start: Starts an engine, and ends it.
        targets: One checkpoint, or a model cut to two depths, the shallower first.
        plan: What is timed.
        kept: Finished cells, also those of an interrupted run.
        room: Bytes that engines may take together; None where only one may run at a time.
        on_failure: Is told which engine failed, under which load, and why; the others go on.
    """

    def __init__(
        self,
        start: StartSession,
        targets: Sequence[Target],
        plan: EnginesPlan,
        kept: FinishedCases,
        *,
        room: int | None,
        on_failure: OnFailure,
    ) -> None:
        self._start, self._targets, self._kept = start, targets, kept
        self.plan = plan
        self._failures = Failures(on_failure)
        self.engines = plan.engines(targets)
        self.waves = alive_together(self.engines, room)
        self.visits = 1 if len(self.waves) == 1 else min(plan.visits, plan.rounds)

    def earlier(self) -> list[dict[str, Any]]:
        """Return the records that an interrupted run has yielded already."""
        return [one for case in self._kept.cases.values() for one in case.get("records", ())]

    def records(self) -> Iterator[dict[str, Any]]:
        """Time what is missing; yield one JSON-ready record per load and way to run an engine.

        The records of a load in an engine are yielded as soon as everything that they compare is timed.
        """
        yield from self._complete()
        for engines, visits in visiting_order(self.waves, self.visits):
            cells = [
                (visit, load)
                for visit in visits
                for load in self.plan.loads
                if any(self._is_due(engine, load, visit) for engine in engines)
            ]
            if not cells:
                continue
            with alive(self._start, engines, self._failures) as session:
                name = "; ".join(session.names)
                with self.plan.progress(name, len(cells)) as tick:
                    for visit, load in cells:
                        found = session.time(load, visit, self._rounds(visit))
                        for engine, cell in found.items():
                            self._kept.put(_cell_name(engine, load, visit), cell)
                        yield from self._complete()
                        tick()

    def _rounds(self, visit: int) -> range:
        """Return the numbers of the rounds of a visit."""
        first, after = (round(self.plan.rounds * number / self.visits) for number in (visit, visit + 1))
        return range(first, after)

    def _is_due(self, engine: EngineGroup, load: EngineLoad, visit: int) -> bool:
        known = self._kept.get(_cell_name(engine.name, load, visit)) is not None
        return not known and not self._failures.has(engine, load)

    def _is_settled(self, engine: EngineGroup, load: EngineLoad) -> bool:
        """Whether nothing more will be timed of a load in an engine."""
        return not any(self._is_due(engine, load, visit) for visit in range(self.visits))

    def _complete(self) -> Iterator[dict[str, Any]]:
        """Yield the records that can be written and were not yet."""
        for load in self.plan.loads:
            for engine in self.engines:
                name = f"records of {engine.name}, {load.label}"
                if self._kept.get(name) is not None or self._failures.has(engine, load):
                    continue
                if all(self._is_settled(other, load) for other in self._compared(engine)):
                    records = self._records(engine, load)
                    yield from records
                    self._kept.put(name, {"records": records})

    def _compared(self, engine: EngineGroup) -> list[EngineGroup]:
        """Return an engine and those that its records compare it with."""
        same = [engine, *filter(None, [self._off(engine), self._vanilla(engine)])]
        if engine.target is self._targets[0]:
            return same
        return [*same, *(self._find(self._targets[0], one.kind) for one in same)]

    def _find(self, target: Target, kind: str) -> EngineGroup:
        return next(one for one in self.engines if one.target is target and one.kind == kind)

    def _off(self, engine: EngineGroup) -> EngineGroup:
        """Return the engine whose ``off`` is the baseline."""
        return engine if engine.settings else next(o for o in self.engines if o.target is engine.target)

    def _vanilla(self, engine: EngineGroup) -> EngineGroup | None:
        same = (one for one in self.engines if one.target is engine.target and not one.settings)
        return next(same, None)

    def _measured(self, engine: EngineGroup, load: EngineLoad) -> MeasuredLoad | None:
        if self._failures.has(engine, load):
            return None
        names = (_cell_name(engine.name, load, visit) for visit in range(self.visits))
        return MeasuredLoad.of_cells([self._kept.cases[name] for name in names])

    def _first_way(self, engine: EngineGroup | None, load: EngineLoad) -> Times | None:
        """Return the times of an engine's first way to run: ``off`` or ``vanilla``."""
        measured = None if engine is None else self._measured(engine, load)
        return None if measured is None else measured.times(measured.first, load)

    def _records(self, engine: EngineGroup, load: EngineLoad) -> list[dict[str, Any]]:
        measured = self._measured(engine, load)
        assert measured is not None, "asked only of what was measured"
        wave = next(one for one in self.waves if engine in one)
        config = self.plan.config("vllm", engine.start) | {
            "load": load.label,
            "engine_kind": engine.kind,
            "visits": self.visits,
            "alive_with": [other.name for other in wave if other is not engine],
        }
        return [
            record_of(
                measured, label, load,
                subject=engine.target.subject,
                config=config,
                baseline=self._first_way(self._off(engine), load),
                vanilla=self._first_way(self._vanilla(engine), load),
                complete_model=self._complete_model(engine, load, label, measured),
            )
            for label in measured.blocks
        ]  # fmt: skip

    def _complete_model(
        self, engine: EngineGroup, load: EngineLoad, label: str, measured: MeasuredLoad
    ) -> dict[str, Any] | None:
        """Return what this depth and the first one say of the complete model, or None."""
        if engine.target is self._targets[0]:
            return None
        off = self._off(engine)
        first, first_off = (self._find(self._targets[0], one.kind) for one in (engine, off))
        shallow = self._measured(first, load)
        base = (self._first_way(first_off, load), self._first_way(off, load))
        if shallow is None or label not in shallow.blocks or base[0] is None or base[1] is None:
            return None
        fewer, more = (target.subject["layers"] for target in self._targets)
        depths = Depths(fewer, more, engine.target.subject["published_layers"])
        mine = (shallow.times(label, load), measured.times(label, load))
        return describe_depths(depths, mine, (base[0], base[1]))


def _cell_name(engine: str, load: EngineLoad, visit: int) -> str:
    return f"{engine}, {load.label}, visit {visit}"
