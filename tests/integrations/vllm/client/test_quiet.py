"""An idle engine is asked once a minute; any sign of work, or anything unknown, means that it is asked."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from sere.integrations.vllm.client import quiet, shared_answer
from sere.integrations.vllm.client.engine import ServedEngine
from sere.integrations.vllm.client.quiet import Quiet, QuietAnswer
from sere.integrations.vllm.live import view
from tests.support.vllm.routes import AGREED, Engine


class Watched:
    """A server with one viewer, who looks once in each second of a time that passes only between looks."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.client = Engine()
        self.engine = ServedEngine(self.client)

    async def looks(self, times: int, look: Callable[[], Awaitable[Any]] | None = None) -> int:
        """Look so many times; return how often the worker was asked meanwhile."""
        before = len(self.client.asked)
        for _ in range(times):
            self.now += 1.0
            await (look or self.engine.counted)()
        return len(self.client.asked) - before

    async def steps(self) -> int:
        """Look once; return the steps that the viewer sees."""
        await self.looks(1)
        return int(json.loads(await self.engine.live(0.0))["now"]["steps"]["rerouted"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Watched:
    # What keeps questions a second apart has its own tests.
    monkeypatch.setattr(shared_answer, "INTERVAL_S", 0.0)
    found = Watched()
    for module, name in ((quiet, "monotonic"), (view, "time")):
        monkeypatch.setattr(module, name, lambda: found.now)
    return found


def test_an_idle_engine_is_asked_once_a_minute(server: Watched) -> None:
    """Two equal answers, then none for a minute; the lines go on all the time."""

    async def run() -> Any:
        assert await server.looks(61) == 2
        assert await server.looks(60) == 1
        return json.loads(await server.engine.live(0.0))

    points = asyncio.run(run())["points"]
    assert points[-1]["at"] == server.now
    assert {one["seconds"] for one in points[:120]} == {1.0}
    assert not any(one["gap"] for one in points)


def test_a_request_that_came_and_went(server: Watched) -> None:
    """A request between two looks is seen by the next one, and then the engine has to be found idle again."""

    async def run() -> None:
        await server.looks(5)
        await server.client.engine_core.add_request_async("request")
        assert await server.steps() == 2
        await server.client.engine_core.add_request_async("request")
        assert await server.looks(20) == 2

    asyncio.run(run())


def test_a_request_during_a_question(server: Watched) -> None:
    """What was sent while the workers answered may be missing from their answer."""
    client = server.client
    ask = client.collective_rpc

    async def slow(method: str, args: tuple[Any, ...]) -> list[Any]:
        found = await ask(method, args)
        await client.engine_core.add_request_async("request")
        return found

    async def run() -> None:
        await server.looks(1)
        client.collective_rpc = slow  # type: ignore[method-assign]
        await server.looks(1)
        client.collective_rpc = ask  # type: ignore[method-assign]
        assert await server.looks(20) == 2
        assert await server.steps() == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    "change",
    [
        lambda client: setattr(client, "unfinished", 1),
        lambda client: setattr(client, "errored", True),
        lambda client: setattr(client.vllm_config.parallel_config, "_api_process_count", 2),
        lambda client: setattr(client.engine_core, "add_request_async", client._take),
        lambda client: delattr(client, "errored"),
        lambda client: delattr(client, "output_processor"),
        lambda client: delattr(client.output_processor, "get_num_unfinished_requests"),
        lambda client: delattr(client.vllm_config, "parallel_config"),
        lambda client: delattr(client.vllm_config.parallel_config, "_api_process_count"),
    ],
    ids=["working", "dead", "two servers", "replaced", "no errored", "no processor", "no number", "no config",
         "no count"],
)  # fmt: skip
def test_asked_each_time(server: Watched, change: Callable[[Any], None]) -> None:
    """While work is under way, if the engine is dead, and where it cannot be known, each look asks."""
    asyncio.run(server.looks(3))
    change(server.client)
    assert asyncio.run(server.looks(5)) == 5


@pytest.mark.parametrize("name", ["engine_core", "engine_core.add_request_async"])
def test_a_client_without_what_is_counted(server: Watched, name: str) -> None:
    """Where requests cannot be counted, each look asks."""
    owner, _, last = name.rpartition(".")
    delattr(getattr(server.client, owner) if owner else server.client, last)
    server.engine = ServedEngine(server.client)
    assert asyncio.run(server.looks(5)) == 5


def test_answers_that_differ(server: Watched) -> None:
    """While counters still move, as after an abort, the engine is asked, whatever the server knows."""

    async def move() -> None:
        server.client.steps += 1
        await server.engine.counted()

    async def run() -> None:
        assert await server.looks(5, move) == 5
        assert await server.looks(20) == 1
        # One that is no longer what it was, as after a reset through a route for development.
        server.now += quiet.KEPT_S
        server.client.steps = 0
        assert await server.steps() == 0
        assert await server.looks(20) == 0

    asyncio.run(run())


@pytest.mark.parametrize("change", ["reset", "configure"])
def test_a_change_is_seen_at_once(server: Watched, change: str) -> None:
    """After a reset or a change, the next look asks, and nothing from before is repeated."""

    async def run() -> None:
        await server.looks(5)
        await (server.engine.reset() if change == "reset" else server.engine.configure({"select_top_k": 3}))
        assert await server.looks(20) == 2
        assert await server.steps() == (0 if change == "reset" else 1)

    asyncio.run(run())


def test_a_reset_during_a_question(server: Watched) -> None:
    """An answer from before a reset that arrives after it is not kept, although it equals the one before."""
    client = server.client
    ask, hold = client.collective_rpc, asyncio.Event()

    async def slow(method: str, args: tuple[Any, ...]) -> list[Any]:
        found = await ask(method, args)
        if args == (False,):
            await hold.wait()
        return found

    async def run() -> None:
        await server.looks(1)
        client.collective_rpc = slow  # type: ignore[method-assign]
        held = asyncio.create_task(server.looks(1))
        while len(client.asked) < 2:
            await asyncio.sleep(0)
        await server.engine.reset()
        hold.set()
        await held
        assert await server.steps() == 0

    asyncio.run(run())


def test_an_error_is_not_the_last_word(server: Watched) -> None:
    """After an error the engine has to be found idle again, and a wrong answer is never repeated."""
    client = server.client
    ask = client.collective_rpc

    async def failing(method: str, args: tuple[Any, ...]) -> list[Any]:
        await ask(method, args)
        raise RuntimeError("a worker is stuck")

    async def run() -> None:
        await server.looks(5)
        server.now += quiet.KEPT_S
        client.collective_rpc = failing  # type: ignore[method-assign]
        for _ in range(3):
            with pytest.raises(RuntimeError, match="stuck"):
                await server.looks(1)
        client.collective_rpc = ask  # type: ignore[method-assign]
        assert await server.looks(20) == 2

    asyncio.run(run())


def test_counts_of_experts(server: Watched) -> None:
    """They have an answer of their own, under the same rules."""
    layer = {"index": 0, "name": "layers.0", "share": 0, "experts": [[1, 2], [3, 0]]}
    client = server.client

    async def counts(method: str, args: tuple[Any, ...]) -> list[Any]:
        client.asked.append(method)
        return [{"fingerprint": AGREED, "data_parallel_rank": 0, "layers": [layer]}]

    async def run() -> None:
        client.collective_rpc = counts  # type: ignore[method-assign]
        assert await server.looks(20, server.engine.expert_counts) == 2
        server.engine._forget()
        assert await server.looks(20, server.engine.expert_counts) == 2
        client.unfinished = 1
        assert await server.looks(5, server.engine.expert_counts) == 5

    asyncio.run(run())


def test_requests_pass() -> None:
    """What is counted is passed on, with all that it was given, and so is what comes back."""

    class Core:
        async def add_request_async(self, *given: Any, **named: Any) -> Any:
            if not given:
                raise ValueError("no request")
            return given, named

    client = Engine()
    client.engine_core = Core()  # type: ignore[assignment]
    seen = Quiet(client)
    assert seen.mark() == 0
    assert asyncio.run(client.engine_core.add_request_async(1, two=2)) == ((1,), {"two": 2})
    with pytest.raises(ValueError, match="no request"):
        asyncio.run(client.engine_core.add_request_async())
    assert seen.mark() == 2


def test_what_cannot_be_read_is_not_kept(server: Watched) -> None:
    """An answer from which nothing can be made is asked for again, also from an idle engine."""
    asked = []

    async def ask() -> list[int]:
        asked.append(1)
        return [1]

    def make(answers: list[int]) -> int:
        raise ValueError(f"of no use: {answers}")

    async def run() -> None:
        answer = QuietAnswer(Quiet(server.client), ask, make)
        for _ in range(5):
            with pytest.raises(ValueError, match="of no use"):
                await answer.get()

    asyncio.run(run())
    assert len(asked) == 5


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_vllm_has_what_is_read() -> None:
    """The installed vLLM has each attribute, and gives its engines work in no other way."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    from vllm.config import ParallelConfig
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.engine.output_processor import OutputProcessor

    assert ParallelConfig()._api_process_count == 1
    assert isinstance(AsyncLLM.errored, property)
    assert callable(OutputProcessor.get_num_unfinished_requests)
    assert "self.output_processor = OutputProcessor(" in inspect.getsource(AsyncLLM)
    core = object.__new__(AsyncMPClient)
    Quiet(SimpleNamespace(engine_core=core))
    assert "add_request_async" in vars(core)
    assert "EngineCoreRequestType" not in inspect.getsource(AsyncLLM)
    assert "EngineCoreRequestType.ADD" in inspect.getsource(AsyncMPClient.add_request_async)
