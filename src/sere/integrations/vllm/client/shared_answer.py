"""One answer of the workers for all who ask: however many do, the workers are asked once a second at most."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

INTERVAL_S = 1.0
"""Seconds for which an answer is given again, and at least which two questions are apart."""

Answer = TypeVar("Answer")


class SharedAnswer(Generic[Answer]):
    """Asks a question for all clients together.

    Args:
        ask: Asks it.
    """

    def __init__(self, ask: Callable[[], Awaitable[Answer]]) -> None:
        self._ask = ask
        self._asked = -INTERVAL_S
        self._put = False
        self._task: asyncio.Task[Answer] | None = None

    async def get(self) -> Answer:
        """Return an answer of the last second, or the one that is under way, or ask.

        Raises:
            Exception: What asking raised; all that waited for it get it.
        """
        if self._task is None or (self._task.done() and not self._is_fresh(self._task)):
            self._put = False
            self._task = asyncio.create_task(self._ask_in_time())
            self._task.add_done_callback(_take_note)
        # A client that goes away must not take the answer from the others.
        return await asyncio.shield(self._task)

    def forget(self) -> None:
        """Let no later request have what was answered or asked before now: it has changed."""
        # A question that still waits for its time will be asked after the change.
        if self._put:
            self._task = None

    def _is_fresh(self, task: asyncio.Task[Answer]) -> bool:
        failed = task.cancelled() or task.exception() is not None
        return not failed and monotonic() - self._asked < INTERVAL_S

    async def _ask_in_time(self) -> Answer:
        await asyncio.sleep(self._asked + INTERVAL_S - monotonic())
        self._asked, self._put = monotonic(), True
        return await self._ask()


def _take_note(task: asyncio.Task[Answer]) -> None:
    """Mark an error as seen, also if every client has gone away meanwhile."""
    if not task.cancelled():
        task.exception()
