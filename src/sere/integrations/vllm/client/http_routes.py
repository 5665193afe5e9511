"""Routes on ``vllm serve``: read and change re-routing over HTTP.

vLLM adds a plug-in's routes only if ``VLLM_PLUGINS`` names it (since 0.26), so other servers have none of
these. Re-routing itself needs no route. They are under ``/v1``, which is where vLLM asks for its
``--api-key``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from sere.errors import ConcurrentChange, ConfigError, EngineError, UnsupportedEngine
from sere.integrations.vllm.client.agreement import agree
from sere.integrations.vllm.client.rpc import ask_engines
from sere.integrations.vllm.engine_stats import merge_answers
from sere.integrations.vllm.methods import CONFIGURE, STATS
from sere.integrations.vllm.prometheus import Collector


class Endpoint:
    """What vLLM's API server asks for routes: four under ``/v1/sere``."""

    name = "sere"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the routes to the server's application."""
        app.add_route("/v1/sere/stats", read_stats, methods=["GET"])
        app.add_route("/v1/sere/metrics", read_metrics, methods=["GET"])
        app.add_route("/v1/sere/reset", reset_stats, methods=["POST"])
        app.add_route("/v1/sere/settings", change_settings, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:  # noqa: ARG002
        """Keep for the routes the engine client, and what lets one change wait for another."""
        state.sere_engine, state.sere_changing = engine_client, asyncio.Lock()


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without what HTTP must not tell: the path of a file on the server."""
    return {name: value for name, value in settings.items() if name != "table"}


def _json(value: Any, status: int = 200) -> Any:
    from fastapi.responses import JSONResponse

    return JSONResponse(value, status_code=status)


async def read_stats(request: Any) -> Any:
    """Return the statistics as JSON."""
    return await _stats(request, reset=False)


async def reset_stats(request: Any) -> Any:
    """Return the statistics as JSON and set all counters to zero, between the same two steps."""
    return await _stats(request, reset=True)


async def _stats(request: Any, *, reset: bool) -> Any:
    try:
        answers = await ask_engines(request.app.state.sere_engine, STATS, reset)
        found = merge_answers(answers).to_mapping()
    except UnsupportedEngine as error:
        return _json({"error": str(error)}, 409)
    except EngineError as error:
        return _json({"error": str(error)}, 500)
    return _json(found | {"settings": _public(found["settings"])})


async def read_metrics(request: Any) -> Any:
    """Return the statistics as Prometheus reads them."""
    from fastapi.responses import PlainTextResponse
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    try:
        answers = await ask_engines(request.app.state.sere_engine, STATS, False)
    except UnsupportedEngine as error:
        return _json({"error": str(error)}, 409)
    registry = CollectorRegistry()
    registry.register(Collector(lambda: answers))
    return PlainTextResponse(generate_latest(registry).decode(), media_type=CONTENT_TYPE_LATEST)


async def change_settings(request: Any) -> Any:
    """Change settings from a JSON object; see `sere.integrations.vllm.configure`."""
    try:
        changes = await _object(request)
        return _json(_public(await _change(request.app.state, changes)))
    except (UnsupportedEngine, ConcurrentChange) as error:
        return _json({"error": str(error)}, 409)
    except EngineError as error:
        return _json({"error": str(error)}, 500)
    except ValueError as error:
        return _json({"error": str(error)}, 400)


async def _change(state: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change settings, one change of this server after the other; see `configure`."""
    async with state.sere_changing:
        steps = agree(changes)
        call = next(steps)
        while True:
            answers = await ask_engines(state.sere_engine, CONFIGURE, *call)
            try:
                call = steps.send(answers)
            except StopIteration as end:
                settings: dict[str, Any] = end.value
                return settings


async def _object(request: Any) -> dict[str, Any]:
    """Return a request's body.

    Raises:
        ConfigError: It is not a JSON object.
    """
    wanted = 'expected a JSON object of settings, such as {"threshold": 0.3}'
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{wanted}, got something that is not JSON ({error})") from error
    if not isinstance(body, dict):
        raise ConfigError(f"{wanted}, got {type(body).__name__}")
    return body
