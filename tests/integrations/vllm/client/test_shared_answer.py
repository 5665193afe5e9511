"""One answer for all who ask: the workers are asked once a second at most."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sere.integrations.vllm.client import shared_answer
from sere.integrations.vllm.client.shared_answer import SharedAnswer


class Clock:
    """A time that passes only while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self._yield = asyncio.sleep
        monkeypatch.setattr(shared_answer, "monotonic", lambda: self.now)
        monkeypatch.setattr(shared_answer.asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        """Let the others run, then let the time pass."""
        await self._yield(0)
        self.now += max(0.0, seconds)


class Workers:
    """What is asked: counts the questions and notes when each came."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.times, self.value = clock, [], 0
        self.fails = False

    async def ask(self) -> int:
        """Answer after a while."""
        self.times.append(self.clock.now)
        value = self.value
        await self.clock._yield(0)
        if self.fails:
            raise RuntimeError("the engine is dead")
        return value


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    return Workers(Clock(monkeypatch))


def test_clients_at_once_share_a_question(workers: Workers) -> None:
    """Requests under way are merged, and those of the same second have the same answer."""

    async def run() -> None:
        shared = SharedAnswer(workers.ask)
        assert await asyncio.gather(*(shared.get() for _ in range(50))) == [0] * 50
        workers.value = 1
        workers.clock.now += 0.75
        assert [await shared.get() for _ in range(50)] == [0] * 50
        workers.clock.now += 0.5
        assert await asyncio.gather(*(shared.get() for _ in range(50))) == [1] * 50

    asyncio.run(run())
    assert workers.times == [100.0, 101.25]


@pytest.mark.parametrize("fails", [False, True], ids=["answers", "errors"])
def test_questions_are_a_second_apart(workers: Workers, fails: bool) -> None:
    """Neither a loop of requests, nor errors, nor changes between them bring the next question forward."""
    workers.fails = fails

    async def run() -> None:
        shared = SharedAnswer(workers.ask)
        for _ in range(20):
            await asyncio.gather(*(shared.get() for _ in range(3)), return_exceptions=True)
            shared.forget()
            workers.clock.now += 0.01

    asyncio.run(run())
    apart = [later - sooner for sooner, later in zip(workers.times, workers.times[1:], strict=False)]
    assert len(workers.times) == 20
    assert min(apart) == pytest.approx(1.0)
    assert max(apart) == pytest.approx(1.0)


def test_nobody_gets_an_answer_from_before_a_change(workers: Workers) -> None:
    """After a change, requests wait for a new question, also where one was under way."""

    async def run() -> list[int]:
        shared = SharedAnswer(workers.ask)
        early = asyncio.create_task(shared.get())
        while not workers.times:
            await workers.clock._yield(0)
        workers.value = 1
        shared.forget()
        return [await shared.get(), await early]

    assert asyncio.run(run()) == [1, 0]
    assert workers.times == [100.0, 101.0]


def test_an_error_reaches_all_and_is_asked_again(workers: Workers) -> None:
    """All that waited for a failed question get its error; the next question may succeed."""
    workers.fails = True

    async def run() -> tuple[list[Any], int]:
        shared = SharedAnswer(workers.ask)
        failed = await asyncio.gather(*(shared.get() for _ in range(3)), return_exceptions=True)
        workers.fails = False
        return failed, await shared.get()

    failed, answer = asyncio.run(run())
    assert [str(error) for error in failed] == ["the engine is dead"] * 3
    assert answer == 0


def test_a_client_that_goes_away(workers: Workers) -> None:
    """The others still get the answer that it waited for."""

    async def run() -> int:
        shared = SharedAnswer(workers.ask)
        leaving, staying = (asyncio.create_task(shared.get()) for _ in range(2))
        await workers.clock._yield(0)
        leaving.cancel()
        return await staying

    assert asyncio.run(run()) == 0
    assert len(workers.times) == 1
