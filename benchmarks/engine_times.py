"""A plug-in for vLLM, for benchmarks: it notes what an engine's processes do, and how long.

`engine_pauses` gives it to a server and reads what it notes; users never run it. It wraps methods of vLLM and
of sere. Each process of the engine appends lines to a file of its own, in the folder that the environment
names: a kind, a name, when it began and ended, and for how much of that time the thread waited for an answer
of another process, and for a core of the machine. The latter is the kernel's run-queue delay
(``/proc/thread-self/schedstat``) without that during the former: vLLM's processes wait for each other by
giving up their core again and again. All times are seconds of one clock, the same in all processes.

What a thread waits for at the edges of what is noted is not taken off, and neither is a core that the host of
a virtual machine takes away: what is left is never too short.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from time import monotonic, thread_time
from typing import Any

from sere.integrations.vllm import plugin
from sere.integrations.vllm.import_hook import after_import

FOLDER = "SERE_ENGINE_TIMES"
"""The variable of the environment that names the folder."""

CALL = "call"
"""A call of sere's methods on all workers, where the engine makes it."""
ANSWER = "answer"
"""The same in a worker."""
READ = "read"
"""In another thread of a worker: what a request to the port for metrics has it compute, during which no other
thread of the worker runs Python; and counters being read, during which no step can begin."""
BETWEEN = "between"
"""Between two steps, while requests are unfinished: the engine takes in requests and makes calls."""
BEGIN = "begin"
"""From when a worker is told to run a step to when the model runner begins it."""
STEP = "step"
"""The model runner's part of a step."""

_OURS = "sere_"
_MARK = "sere_engine_times"
_STATISTICS = "/proc/thread-self/schedstat"
_FILES: dict[int, int] = {}

Function = Callable[..., Any]


class Thread(threading.local):
    """What one thread has waited for so far.

    Attributes:
        answers: Whether it answers a request to the port for metrics.
        calls: In how many calls it is, one within the other.
        away_s: Seconds in which it waited for an answer of another process.
        away_waited_s: Seconds of these in which it waited for a core.
        begin: Ends what is noted of a step's beginning.
    """

    def __init__(self) -> None:
        self.calls, self.away_s, self.away_waited_s = 0, 0.0, 0.0
        self.begin, self.answers = ExitStack(), False

    @contextmanager
    def away(self) -> Iterator[None]:
        """Wait for an answer of another process."""
        waited, began = waited_s(), monotonic()
        try:
            yield
        finally:
            self.away_s += monotonic() - began
            self.away_waited_s += waited_s() - waited

    @contextmanager
    def noting(self, kind: str, name: str = "-") -> Iterator[None]:
        """Note how long the block takes."""
        began, away, waited = monotonic(), self.away_s, waited_s() - self.away_waited_s
        try:
            yield
        finally:
            waited = waited_s() - self.away_waited_s - waited
            _write(kind, name, began, monotonic(), self.away_s - away, waited)

    @contextmanager
    def computing(self, kind: str, name: str) -> Iterator[None]:
        """Note for how long a request to the port has a core; the rest is waiting for others."""
        self.answers, began, computed = True, monotonic(), thread_time()
        try:
            yield
        finally:
            self.answers = False
            computed = thread_time() - computed
            ended = monotonic()
            _write(kind, name, began, ended, ended - began - computed, 0.0)

    @contextmanager
    def calling(self, kind: str, name: str) -> Iterator[None]:
        """Note how long a call takes, unless it is part of another one."""
        self.calls += 1
        try:
            with self.noting(kind, name) if self.calls == 1 else nullcontext():
                yield
        finally:
            self.calls -= 1


HERE = Thread()


def waited_s() -> float:
    """Return the seconds for which this thread has waited for a core so far.

    Raises:
        OSError: The kernel has no such statistics.
    """
    file = os.open(_STATISTICS, os.O_RDONLY)
    try:
        return int(os.read(file, 100).split()[1]) / 1e9
    finally:
        os.close(file)


def register() -> None:
    """Wrap the methods of this process, now or when their modules are imported; what vLLM calls."""
    # Only one function can wait for a module, so that both plug-ins share the one for the engine's.
    _wrap(plugin, "watch_engine_core", _and_time)
    plugin.register()
    after_import("vllm.distributed.device_communicators.shm_broadcast", time_queues)
    after_import("sere.integrations.vllm.worker.equip", time_answers)
    after_import("sere.integrations.vllm.worker.steps", time_steps)
    after_import("sere.integrations.vllm.worker.state", time_reads)
    after_import("sere.integrations.vllm.worker.live_port", time_port)


def _and_time(watch: Function) -> Function:
    def both(module: Any) -> None:
        watch(module)
        time_core(module)

    return both


def time_core(module: Any) -> None:
    """Time what the engine does between steps.

    Args:
        module: ``vllm.v1.engine.core``.
    """

    def asking(call: Function) -> Function:
        def collective_rpc(self: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
            if not (isinstance(method, str) and method.startswith(_OURS)):
                return call(self, method, *args, **kwargs)
            with HERE.calling(CALL, method):
                return call(self, method, *args, **kwargs)

        return collective_rpc

    def between(process: Function) -> Function:
        def _process_input_queue(self: Any) -> Any:
            if not self.has_work():
                return process(self)
            with HERE.noting(BETWEEN):
                return process(self)

        return _process_input_queue

    _wrap(module.EngineCore, "collective_rpc", asking)
    _wrap(module.EngineCoreProc, "_process_input_queue", between)


def time_queues(module: Any) -> None:
    """Time how long processes wait for each other.

    Args:
        module: vLLM's ``shm_broadcast``.
    """

    def waiting(get: Function) -> Function:
        def dequeue(self: Any, *args: Any, **kwargs: Any) -> Any:
            with HERE.away():
                return get(self, *args, **kwargs)

        return dequeue

    _wrap(module.MessageQueue, "dequeue", waiting)


def time_answers(module: Any) -> None:
    """Time sere's methods of the workers that are equipped from now on.

    Args:
        module: ``sere.integrations.vllm.worker.equip``.
    """

    def answering(methods: Callable[[Any], Mapping[str, Function]]) -> Function:
        def methods_of(state: Any) -> dict[str, Function]:
            return {name: answered(name, method) for name, method in methods(state).items()}

        return methods_of

    def answered(name: str, method: Function) -> Function:
        @functools.wraps(method)
        def answer(*args: Any) -> Any:
            with HERE.calling(ANSWER, name):
                return method(*args)

        return answer

    _wrap(module, "methods_of", answering)


def time_steps(module: Any) -> None:
    """Time the steps of the model runners that are watched from now on.

    Args:
        module: ``sere.integrations.vllm.worker.steps``.
    """

    def around(watch: Function) -> Function:
        def _around_step(self: Any, execute: Function) -> Function:
            @functools.wraps(execute)
            def begun(*args: Any, **kwargs: Any) -> Any:
                HERE.begin.close()
                with HERE.noting(STEP):
                    return execute(*args, **kwargs)

            watched = watch(self, begun)

            @functools.wraps(watched)
            def told(*args: Any, **kwargs: Any) -> Any:
                with ExitStack() as HERE.begin:
                    HERE.begin.enter_context(HERE.noting(BEGIN))
                    return watched(*args, **kwargs)

            return told

        return _around_step

    _wrap(module.Steps, "_around_step", around)


def time_reads(module: Any) -> None:
    """Time how long counters are read for the port; elsewhere this is part of a call, or nobody asked for it.

    Args:
        module: ``sere.integrations.vllm.worker.state``.
    """

    def reading(read: Function) -> Function:
        def report(self: Any) -> Any:
            if not HERE.answers:
                return read(self)
            with HERE.calling(READ, "counters"):
                return read(self)

        return report

    _wrap(module.WorkerState, "report", reading)


def time_port(module: Any) -> None:
    """Time how long requests to the port for metrics are computed.

    Args:
        module: ``sere.integrations.vllm.worker.live_port``.
    """

    def computing(answer: Function) -> Function:
        def __call__(self: Any, *args: Any) -> Any:
            with HERE.computing(READ, "port"):
                return answer(self, *args)

        return __call__

    _wrap(module.LivePort, "__call__", computing)


def _wrap(owner: Any, name: str, around: Callable[[Function], Function]) -> None:
    """Put a function around one of a class or module, if there is none yet."""
    function = getattr(owner, name)
    if not hasattr(function, _MARK):
        wrapped = functools.wraps(function)(around(function))
        setattr(wrapped, _MARK, True)
        setattr(owner, name, wrapped)


def _write(kind: str, name: str, *times: float) -> None:
    """Append a line to the file of this process."""
    pid = os.getpid()
    if pid not in _FILES:
        path = Path(os.environ[FOLDER]) / f"{pid}.txt"
        _FILES[pid] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    line = " ".join([kind, name, *(f"{time:.6f}" for time in times)])
    os.write(_FILES[pid], f"{line}\n".encode())
