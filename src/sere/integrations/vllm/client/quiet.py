"""The answers of an idle engine, asked for once a minute: a question keeps vLLM's workers busy for a second.

A message wakes a worker of vLLM's ``MultiprocExecutor``, which then looks for the next one for a second
without sleeping (``SpinCondition`` in ``vllm/distributed/device_communicators/shm_broadcast.py``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar

KEPT_S = 60.0
"""Seconds after which an idle engine is asked again, because of what a server process does not see, such as
vLLM's routes for development."""

Answer = TypeVar("Answer")


class Quiet:
    """Knows whether a server process gave its engines work.

    All work reaches the engines through ``add_request_async`` of vLLM's ``engine_core``. vLLM keeps no count
    of its calls, so it is replaced by a function that counts them and passes them on.

    Args:
        client: vLLM's ``EngineClient``, or None. Where it lacks an attribute that is needed, such as in
            another version of vLLM, its engines are never taken for idle.
    """

    def __init__(self, client: Any) -> None:
        self._client, self._sent = client, 0
        self._counting = self._replace(getattr(client, "engine_core", None))

    def mark(self) -> int | None:
        """Return how often work was sent until now, or None unless the engines are idle as far as is known.

        Between two equal marks no work was sent. What was sent before them may still be going on for a step.
        """
        client = self._client
        try:
            parallel = client.vllm_config.parallel_config
            idle = (
                # The requests of another server process are not seen here.
                getattr(parallel, "_api_process_count", None) == 1
                # An engine that died has no valid answer.
                and client.errored is False
                and client.output_processor.get_num_unfinished_requests() == 0
                and client.engine_core.add_request_async is self._counting
            )
        except AttributeError:
            return None
        return self._sent if idle else None

    def _replace(self, engine_core: Any) -> Callable[..., Any] | None:
        """Count the calls of a client's ``add_request_async`` from now on."""
        try:
            send = engine_core.add_request_async

            def counting(*args: Any, **kwargs: Any) -> Any:
                self._sent += 1
                return send(*args, **kwargs)

            engine_core.add_request_async = counting
        except AttributeError:
            return None
        return counting


@dataclass(frozen=True)
class _Asked(Generic[Answer]):
    """The last answers, when they were asked for, and whether they hold until work is sent."""

    made: Answer
    answers: Any
    at: float
    mark: int | None
    settled: bool


class QuietAnswer(Generic[Answer]):
    """Asks all workers a question, but repeats the last answer while it cannot have changed.

    It is repeated once two questions in a row had equal answers and no work was sent since before the first.
    A single answer would not do: vLLM forgets an aborted request before its engine hears of that, and a step
    may be under way. Questions are to be put one after the other, as `SharedAnswer` does.

    Args:
        quiet: Tells whether there is work.
        ask: Asks the workers for plain numbers, equal for as long as nothing is counted or changed.
        make: Makes what is returned from their answers.
    """

    def __init__(
        self, quiet: Quiet, ask: Callable[[], Awaitable[Any]], make: Callable[[Any], Answer]
    ) -> None:
        self._quiet, self._ask, self._make = quiet, ask, make
        self._last: _Asked[Answer] | None = None
        self._changes = 0

    async def get(self) -> Answer:
        """Return the answer of now.

        Raises:
            Exception: What asking, or making the answer, raised; the next call asks again.
        """
        # Work that is sent while the workers answer makes every later mark another one.
        mark, now, last = self._quiet.mark(), monotonic(), self._last
        if last is not None and last.settled and last.mark == mark and now - last.at < KEPT_S:
            return last.made
        self._last, changes = None, self._changes
        answers = await self._ask()
        made = self._make(answers)
        if changes == self._changes:
            settled = mark is not None and last is not None and (last.mark, last.answers) == (mark, answers)
            self._last = _Asked(made, answers, now, mark, settled)
        return made

    def forget(self) -> None:
        """Repeat no answer that was given, or asked for, before now: what was counted or set has changed."""
        self._last = None
        self._changes += 1
