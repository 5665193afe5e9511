"""Engines that take no time: for what a timing of several engines starts, runs and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sere.bench.vllm.blocks import EngineBlock
from sere.bench.vllm.engine_groups import EngineGroup, Target
from sere.bench.vllm.engine_loads import EngineLoad, decoding
from sere.bench.vllm.engines import EnginesBench, EnginesPlan
from sere.bench.vllm.session import NOT_COUNTED, VANILLA
from sere.errors import SereError
from sere.eval.finished import FinishedCases
from sere.policies.spec import parse_specs

TIMES: Mapping[str, float] = {"off": 4.0, "sere": 2.0, VANILLA: 3.0}
"""What a layer takes under each setting, in ms; an engine takes 10 ms beside."""


SHAPE: Mapping[str, int] = {"num_experts": 8, "top_k": 4}
"""Half of the experts are chosen by a row."""


class Machine:
    """Starts engines, and notes what they are asked.

    Attributes:
        log: Per timed block, the engine's kind, its layers, the load and the setting.
        started: Kinds of the engines that were started, in order.
        most: Most engines that were alive at once.
        refuse: Is asked before a start, a count and a block; what it raises is what the engine answers.
    """

    def __init__(self, refuse: Callable[[str, EngineGroup, str], None] = lambda *_: None) -> None:
        self.log: list[tuple[str, int, str, str]] = []
        self.started: list[str] = []
        self.most = self.alive = 0
        self.refuse = refuse

    @contextmanager
    def start(self, engine: EngineGroup) -> Iterator[_Session]:
        """Start an engine, and end it."""
        self.refuse("start", engine, "")
        self.started.append(engine.kind)
        self.alive += 1
        self.most = max(self.most, self.alive)
        yield _Session(self, engine)
        self.alive -= 1


class _Session:
    def __init__(self, machine: Machine, engine: EngineGroup) -> None:
        self.machine, self.engine = machine, engine
        self.load: EngineLoad = decoding(1, 1, 1)

    def describe(self) -> dict[str, Any]:
        subject = {"moe_layers": 1, "bytes_per_expert": 10} if self.engine.settings else {}
        return {"subject": subject, "provenance": {"machine": "m"}}

    def open(self, load: EngineLoad) -> list[str]:
        self.machine.refuse("open", self.engine, load.label)
        self.load = load
        return [setting.label for setting in self.engine.settings] or [VANILLA]

    def count(self, label: str) -> dict[str, Any]:
        self.machine.refuse("count", self.engine, self.load.label)
        return dict(NOT_COUNTED)

    def warm(self, label: str) -> None:
        self.machine.refuse("warm", self.engine, self.load.label)

    def block(self, label: str) -> EngineBlock:
        self.machine.refuse("block", self.engine, self.load.label)
        layers = self.engine.target.subject["layers"]
        self.machine.log.append((self.engine.kind, layers, self.load.label, label))
        step = 10 + layers * TIMES[label.partition(":")[0]]
        return EngineBlock([1.0], [step, step], 3 * step)


def target(folder: Path, layers: int) -> Target:
    """Return a checkpoint of a model that has 48 layers, with as many gigabytes as layers."""
    model = folder / str(layers)
    model.mkdir(exist_ok=True)
    with (model / "model.safetensors").open("wb") as stream:
        stream.truncate(layers * 10**9)  # takes no room on the disk
    return Target(model, folder / "table", {"layers": layers, "published_layers": 48} | SHAPE)


def timing(
    folder: Path,
    machine: Machine,
    *settings: str,
    depths: Sequence[int] = (4,),
    room: int | None = 10**12,
    failed: list[tuple[str, str]] | None = None,
    **values: Any,
) -> EnginesBench:
    """Return a timing of such engines, whose finished cells are kept in a file of the folder."""

    def on_failure(what: str, error: SereError) -> None:
        assert failed is not None, f"{what}: {error}"
        failed.append((what, str(error)))

    plan = EnginesPlan(
        settings=parse_specs(settings or ["sere"]),
        **({"loads": [decoding(8, 4, 2), decoding(16, 4, 2)], "rounds": 2, "vanilla": True} | values),
    )
    return EnginesBench(
        machine.start, [target(folder, layers) for layers in depths], plan,
        FinishedCases(folder / "partial", {}), room=room, on_failure=on_failure,
    )  # fmt: skip
