"""The plug-in that notes what an engine's processes spend their time on, on stand-ins for the engine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import engine_times
from engine_pauses import Notes, Span
from engine_times import ANSWER, BEGIN, BETWEEN, CALL, READ, STEP
from sere.integrations.vllm import plugin
from tests.support.patience import HANGS_S

NAP_S = 0.03


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Span]]]:
    """What this process noted since the last call."""
    monkeypatch.setenv(engine_times.FOLDER, str(tmp_path))
    files: dict[int, int] = {}
    monkeypatch.setattr(engine_times, "_FILES", files)
    yield Notes(tmp_path).take
    for file in files.values():
        os.close(file)


class _Core:
    """An engine whose workers are in other processes."""

    def __init__(self, queue: Any = None) -> None:
        self.work, self.asked, self.queue = True, ["sere_stats"], queue

    def has_work(self) -> bool:
        return self.work

    def collective_rpc(self, method: str, args: int | None = None) -> str:
        if self.queue is not None:
            self.queue.dequeue()
        return f"{method} {args}"

    def _process_input_queue(self) -> list[str]:
        return [self.collective_rpc(method) for method in self.asked]


def core(queue: Any = None) -> _Core:
    """An engine whose calls and pauses are noted."""

    class Core(_Core):
        """Wrapped in place of what other tests use."""

    engine_times.time_core(SimpleNamespace(EngineCore=Core, EngineCoreProc=Core))
    return Core(queue)


def kinds(spans: list[Span]) -> list[tuple[str, str]]:
    return [(one.kind, one.name) for one in spans]


def test_calls_and_pauses_of_the_engine(taken: Callable[[], list[Span]]) -> None:
    """A call is noted, and that it came between two steps; others' calls are not, and idling is no pause."""
    engine = core()
    assert engine._process_input_queue() == ["sere_stats None"]
    call, between = taken()
    assert kinds([call, between]) == [(CALL, "sere_stats"), (BETWEEN, "-")]
    assert between.began <= call.began <= call.ended <= between.ended
    assert engine.collective_rpc("sere_stats", args=2) == "sere_stats 2"
    assert kinds(taken()) == [(CALL, "sere_stats")]
    engine.work, engine.asked = False, ["execute_model"]
    assert engine._process_input_queue() == ["execute_model None"]
    assert not taken()


def test_waiting_for_a_worker_is_no_time_of_the_engine(taken: Callable[[], list[Span]]) -> None:
    """What another process takes for its answer is noted apart, also for the pause around the call."""

    class Queue:
        def dequeue(self) -> None:
            time.sleep(NAP_S)

    engine_times.time_queues(SimpleNamespace(MessageQueue=Queue))
    core(Queue())._process_input_queue()
    call, between = taken()
    for span in (call, between):
        assert span.ms >= 1000 * NAP_S
        assert span.away_s >= NAP_S
        assert span.own_ms <= span.ms - 1000 * NAP_S


def test_waiting_for_a_core_is_noted(
    taken: Callable[[], list[Span]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's delay counts from the beginning to the end, without that while an answer was awaited."""
    here = engine_times.Thread()
    delays = iter([10.0, 11.0, 13.0, 18.0])
    monkeypatch.setattr(engine_times, "waited_s", lambda: next(delays))
    with here.noting(CALL, "x"), here.away():
        pass
    (span,) = taken()
    assert span.waited_s == pytest.approx(18.0 - 10.0 - (13.0 - 11.0))


def test_the_kernel_says_how_long_a_thread_waited() -> None:
    """Each thread has a number of its own, in seconds, which does not fall."""
    found: list[float] = []

    def ask() -> None:
        found.extend(engine_times.waited_s() for _ in range(3))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(HANGS_S)
    assert found == sorted(found)
    assert len(found) == 3
    assert 0 <= found[-1] < HANGS_S


def test_answers_of_a_worker(taken: Callable[[], list[Span]]) -> None:
    """Every method is noted, an error too; counters are noted by themselves for the port alone."""

    class State:
        def report(self) -> str:
            return "counters"

    def refuse() -> None:
        raise ValueError("no")

    state = State()
    equip = SimpleNamespace(methods_of=lambda of: {"sere_stats": of.report, "sere_configure": refuse})
    engine_times.time_answers(equip)
    engine_times.time_reads(SimpleNamespace(WorkerState=State))
    methods = equip.methods_of(state)
    assert methods["sere_stats"]() == "counters"
    with pytest.raises(ValueError, match="no"):
        methods["sere_configure"]()
    assert kinds(taken()) == [(ANSWER, "sere_stats"), (ANSWER, "sere_configure")]
    assert state.report() == "counters"
    assert not taken()
    with engine_times.HERE.computing(READ, "port"):
        assert state.report() == "counters"
    assert kinds(taken()) == [(READ, "counters"), (READ, "port")]
    assert state.report() == "counters"
    assert not taken()


def test_a_step_that_must_wait(taken: Callable[[], list[Span]]) -> None:
    """What comes before the model runner's part is noted apart: there a step waits for who reads counters."""

    class Steps:
        def _around_step(self, execute: Callable[[int], int]) -> Callable[[int], int]:
            def executed(value: int) -> int:
                time.sleep(NAP_S)
                return execute(value)

            return executed

    engine_times.time_steps(SimpleNamespace(Steps=Steps))
    step = Steps()._around_step(lambda value: value + 1)
    for number in (1, 2):
        assert step(number) == number + 1
        begin, run = taken()
        assert kinds([begin, run]) == [(BEGIN, "-"), (STEP, "-")]
        assert begin.own_ms >= 0
        assert begin.ms >= 1000 * NAP_S
        assert begin.ended <= run.began


def test_requests_to_the_port(taken: Callable[[], list[Span]]) -> None:
    """What a request computes is noted, not how long it waits for the lock or for other threads."""

    class Port:
        def __call__(self, environ: dict[str, str], start: object) -> list[bytes]:
            time.sleep(NAP_S)
            return [environ["PATH_INFO"].encode()]

    engine_times.time_port(SimpleNamespace(LivePort=Port))
    assert Port()({"PATH_INFO": "/metrics"}, None) == [b"/metrics"]
    (span,) = taken()
    assert (span.kind, span.name) == (READ, "port")
    assert span.ms >= 1000 * NAP_S
    assert 0 < span.own_ms < span.ms


def test_nothing_is_wrapped_twice() -> None:
    """Plug-ins may be loaded more than once in a process."""

    class Queue:
        def dequeue(self) -> None:
            """Wait."""

    module = SimpleNamespace(MessageQueue=Queue)
    engine_times.time_queues(module)
    once = Queue.dequeue
    engine_times.time_queues(module)
    assert Queue.dequeue is once


@pytest.mark.parametrize(
    ("module", "owner", "name", "act"),
    [
        ("equip", "", "methods_of", engine_times.time_answers),
        ("steps", "Steps", "_around_step", engine_times.time_steps),
        ("state", "WorkerState", "report", engine_times.time_reads),
        ("live_port", "LivePort", "__call__", engine_times.time_port),
    ],
)
def test_what_is_wrapped_of_sere_is_there(
    module: str, owner: str, name: str, act: Callable[[Any], None]
) -> None:
    """The plug-in wraps functions of the workers that exist."""
    _wraps(f"sere.integrations.vllm.worker.{module}", owner, name, act)


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("module", "owner", "name", "act"),
    [
        ("v1.engine.core", "EngineCore", "collective_rpc", engine_times.time_core),
        ("v1.engine.core", "EngineCoreProc", "_process_input_queue", engine_times.time_core),
        (
            "distributed.device_communicators.shm_broadcast",
            "MessageQueue",
            "dequeue",
            engine_times.time_queues,
        ),
    ],
)
def test_what_is_wrapped_of_vllm_is_there(
    module: str, owner: str, name: str, act: Callable[[Any], None]
) -> None:
    """The plug-in wraps methods of this vLLM that exist."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    _wraps(f"vllm.{module}", owner, name, act)


def _wraps(module: str, owner: str, name: str, act: Callable[[Any], None]) -> None:
    """Wrap a copy of a module, with subclasses of its classes: other tests use the module itself."""
    loaded = import_module(module)
    copy = SimpleNamespace(**vars(loaded))
    for one in ("EngineCore", "EngineCoreProc", "MessageQueue", "Steps", "WorkerState", "LivePort"):
        if hasattr(loaded, one):
            setattr(copy, one, type(one, (getattr(loaded, one),), {}))
    act(copy)
    wrapped, former = (getattr(of, owner) if owner else of for of in (copy, loaded))
    assert getattr(wrapped, name).__wrapped__ is getattr(former, name)


def test_both_plug_ins_see_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is loaded first, sere's own watch of the engine's module stays, and this one is there too."""
    seen: list[tuple[str, str]] = []
    waiting: dict[str, Callable[[Any], None]] = {}

    def watch(module: str) -> None:
        seen.append(("sere", module))

    monkeypatch.delenv(plugin.DISABLE, raising=False)
    monkeypatch.setattr(plugin, "watch_engine_core", watch)
    monkeypatch.setattr(engine_times, "time_core", lambda module: seen.append(("times", module)))
    for one in (plugin, engine_times):
        monkeypatch.setattr(one, "after_import", waiting.__setitem__)
    plugin.register()
    engine_times.register()
    plugin.register()
    waiting["vllm.v1.engine.core"]("core")
    assert seen == [("sere", "core"), ("times", "core")]
    assert {"vllm.distributed.device_communicators.shm_broadcast", "sere.integrations.vllm.worker.equip",
            "sere.integrations.vllm.worker.steps", "sere.integrations.vllm.worker.state",
            "sere.integrations.vllm.worker.live_port"} < set(waiting)  # fmt: skip
