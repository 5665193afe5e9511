"""The engine behind a server's routes: what it counted, asked for once for all clients, and its settings."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import PurePath
from typing import Any

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.changes import ModelSize
from sere.integrations.vllm.client.admin_key import why_nobody_may
from sere.integrations.vllm.client.agreement import agree
from sere.integrations.vllm.client.quiet import Quiet, QuietAnswer
from sere.integrations.vllm.client.rpc import NOT_ACTIVE, ask_engines
from sere.integrations.vllm.client.shared_answer import SharedAnswer
from sere.integrations.vllm.engine_stats import join_answers, merge_answers
from sere.integrations.vllm.expert_counts import join_expert_counts
from sere.integrations.vllm.live.view import Live
from sere.integrations.vllm.methods import CONFIGURE, EXPERTS, STATS
from sere.integrations.vllm.plugin_config import section
from sere.integrations.vllm.prometheus import exposition
from sere.step_time import Ceilings, known_ceilings


class Counted:
    """What the workers counted, and its two forms, each made once.

    Args:
        answers: What each worker's ``sere_stats`` returned.

    Attributes:
        joined: The statistics of all workers together.

    Raises:
        EngineError: A worker failed, or the workers hold different settings.
        UnsupportedEngine: There is no answer.
    """

    def __init__(self, answers: Sequence[Mapping[str, Any]]) -> None:
        self._answers, self.joined = answers, join_answers(answers)

    @cached_property
    def stats(self) -> dict[str, Any]:
        """The statistics, JSON-ready."""
        found = merge_answers(self._answers).to_mapping()
        return found | {"settings": _public(found["settings"])}

    @cached_property
    def metrics(self) -> tuple[str, str]:
        """The statistics as Prometheus reads them, and the media type of that."""
        return exposition(self._answers)


class ServedEngine:
    """One engine, asked by the routes of one server process.

    Args:
        client: vLLM's ``EngineClient``, or None in a server that has no engine.

    Attributes:
        size: The model's.
        has_page: Whether the live page was asked for.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        config = getattr(client, "vllm_config", None)
        self.size = ModelSize.of(getattr(config, "model_config", None))
        self._active = client is not None and (config is None or section(config) is not None)
        quiet = Quiet(client if self._active else None)
        self._stats = QuietAnswer(quiet, lambda: self._ask(STATS, False), Counted)
        self._uses = QuietAnswer(quiet, lambda: self._ask(EXPERTS), _uses_of)
        self._shared = SharedAnswer(self._count)
        self._experts = SharedAnswer(self._uses.get)
        self._live = Live(
            _name_of(config), why_nobody_may(), _ceilings_of(config), processes=_processes_of(config)
        )
        self.has_page = bool((section(config) or {}).get("live_page"))
        self._changing = asyncio.Lock()

    async def counted(self) -> Counted:
        """Return what was counted, at most a second ago.

        Raises:
            EngineError: A worker failed, or the workers hold different settings.
            UnsupportedEngine: Re-routing is not active.
        """
        return await self._shared.get()

    async def expert_counts(self) -> dict[str, Any]:
        """Return how often each expert was chosen and ran, JSON-ready, read at most a second ago.

        Raises:
            EngineError: A worker failed, or the workers hold different settings.
            UnsupportedEngine: Re-routing is not active, or the engine was started without
                ``count_experts``.
        """
        return await self._experts.get()

    async def reset(self) -> Counted:
        """Return what was counted until now, and set all counters to zero.

        Raises:
            UnsupportedEngine: Re-routing is not active.
        """
        try:
            counted = Counted(await self._ask(STATS, True))
            self._live.add(counted.joined)
            self._live.note_reset()
            return counted
        finally:
            self._forget()

    async def live(self, since: float) -> str:
        """Return what the live page shows, as JSON.

        Args:
            since: The points of its lines after this moment, in seconds since 1970.

        Raises:
            EngineError: A worker failed, or the workers hold different settings.
            UnsupportedEngine: Re-routing is not active.
        """
        await self.counted()
        return self._live.body(since)

    async def configure(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change settings and return the new ones.

        Args:
            changes: Checked by `check_changes`.

        Raises:
            ConfigError: They do not fit the table.
            ConcurrentChange: A change of another server process came in between.
            EngineError: A worker failed, or the workers disagree.
            UnsupportedEngine: Re-routing is not active.
        """
        try:
            async with self._changing:
                return _public(await self._change(changes))
        finally:
            self._forget()

    def _forget(self) -> None:
        self._stats.forget()
        self._uses.forget()
        self._shared.forget()
        self._experts.forget()

    async def _change(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        steps = agree(changes)
        call = next(steps)
        while True:
            answers = await self._ask(CONFIGURE, *call)
            try:
                call = steps.send(answers)
            except StopIteration as end:
                settings: dict[str, Any] = end.value
                return settings

    async def _count(self) -> Counted:
        counted = await self._stats.get()
        # Also if the workers were not asked: somebody looked.
        self._live.add(counted.joined)
        return counted

    async def _ask(self, method: str, *args: Any) -> Any:
        """Call a method of all workers."""
        if not self._active:
            raise UnsupportedEngine(NOT_ACTIVE)
        return await ask_engines(self._client, method, *args)


def _uses_of(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how often each expert was chosen and ran, JSON-ready."""
    return {"layers": [asdict(layer) for layer in join_expert_counts(answers)]}


def _name_of(config: Any) -> str | None:
    """Return what clients call the model, which is no path of the server's unless the operator says so."""
    name = getattr(getattr(config, "model_config", None), "served_model_name", None)
    name = name[0] if isinstance(name, list) and name else name
    return PurePath(name).name if isinstance(name, str) else None


def _ceilings_of(config: Any) -> Ceilings | None:
    """Return what `sere doctor` measured of this machine, for one worker without quantization."""
    model, parallel = getattr(config, "model_config", None), getattr(config, "parallel_config", None)
    if getattr(model, "quantization", None) is not None or getattr(parallel, "world_size", None) != 1:
        return None
    device = str(getattr(getattr(config, "device_config", None), "device_type", ""))
    return known_ceilings(device, str(getattr(model, "dtype", "")).removeprefix("torch."))


def _processes_of(config: Any) -> int:
    """Return how many server processes share the engine; 1 where vLLM does not say."""
    count = getattr(getattr(config, "parallel_config", None), "_api_process_count", 1)
    return count if isinstance(count, int) else 1


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without what HTTP must not tell: the path of a file on the server."""
    return {name: value for name, value in settings.items() if name != "table"}
