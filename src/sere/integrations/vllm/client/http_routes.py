"""Routes on ``vllm serve``: read and change re-routing over HTTP.

vLLM adds a plug-in's routes only if ``VLLM_PLUGINS`` names it (since 0.26), so other servers have none of
these. Re-routing itself needs no route. They are under ``/v1``, which is where vLLM asks for its
``--api-key``. What changes something asks for a key of its own, too.

A status of 400 to 499 says that the client did something wrong, and nothing else does: an engine that cannot
answer has 503, one whose workers fail or disagree 500, and an error that nobody expected stays one of the
server's. 409 is a change that met another one.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from sere.errors import ConcurrentChange, ConfigError, EngineError, UnsupportedEngine
from sere.integrations.vllm.changes import check_changes
from sere.integrations.vllm.client.admin_key import check_admin
from sere.integrations.vllm.client.body import read_body, read_object
from sere.integrations.vllm.client.engine import ServedEngine
from sere.integrations.vllm.client.refusal import RequestRefused, error_answer, json_answer
from sere.integrations.vllm.live.page import LIVE, OFF, PATH, page
from sere.integrations.vllm.live.view import since_of

Handler = Callable[[Any, ServedEngine], Awaitable[Any]]


class Endpoint:
    """What vLLM's API server asks for routes: six under ``/v1/sere``, and the live page."""

    name = "sere"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the routes to the server's application."""
        app.add_route("/v1/sere/stats", read_stats, methods=["GET"])
        app.add_route("/v1/sere/experts", read_experts, methods=["GET"])
        app.add_route("/v1/sere/metrics", read_metrics, methods=["GET"])
        app.add_route(LIVE, read_live, methods=["GET"])
        app.add_route(PATH, read_page, methods=["GET"])
        app.add_route("/v1/sere/reset", reset_stats, methods=["POST"])
        app.add_route("/v1/sere/settings", change_settings, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:  # noqa: ARG002
        """Keep the engine for the routes."""
        state.sere_engine = ServedEngine(engine_client)


def _answers_errors(handler: Handler) -> Callable[[Any], Awaitable[Any]]:
    """Answer what a handler raises on purpose with its status; other errors are the server's own."""

    @functools.wraps(handler)
    async def answering(request: Any) -> Any:
        try:
            return await handler(request, request.app.state.sere_engine)
        except RequestRefused as error:
            return error_answer(error, error.status)
        except ConcurrentChange as error:
            return error_answer(error, 409)
        except UnsupportedEngine as error:
            return error_answer(error, 503)
        except EngineError as error:
            return error_answer(error, 500)

    return answering


@_answers_errors
async def read_stats(request: Any, engine: ServedEngine) -> Any:  # noqa: ARG001
    """Return the statistics as JSON."""
    return json_answer((await engine.counted()).stats)


@_answers_errors
async def read_experts(request: Any, engine: ServedEngine) -> Any:  # noqa: ARG001
    """Return how often each expert was chosen and ran, as JSON."""
    return json_answer(await engine.expert_counts())


@_answers_errors
async def read_metrics(request: Any, engine: ServedEngine) -> Any:  # noqa: ARG001
    """Return the statistics as Prometheus reads them."""
    from starlette.responses import Response

    text, media_type = (await engine.counted()).metrics
    return Response(text, media_type=media_type)


@_answers_errors
async def read_live(request: Any, engine: ServedEngine) -> Any:
    """Return what the live page shows; of its lines, the points after ``since``."""
    return json_answer(await engine.live(since_of(request.query_params.get("since"))))


async def read_page(request: Any) -> Any:
    """Return the live page. It knows nothing of this server, so it needs no key: what it asks for does."""
    from starlette.responses import PlainTextResponse, Response

    if not request.app.state.sere_engine.has_page:
        return PlainTextResponse(f"{OFF}\n", 404)
    document, headers = page()
    return Response(document, headers=headers)


@_answers_errors
async def reset_stats(request: Any, engine: ServedEngine) -> Any:
    """Return the statistics as JSON and set all counters to zero, between the same two steps."""
    check_admin(request)
    # Whatever it holds; but not more of it than of any body.
    await read_body(request)
    return json_answer((await engine.reset()).stats)


@_answers_errors
async def change_settings(request: Any, engine: ServedEngine) -> Any:
    """Change settings from a JSON object; see `sere.integrations.vllm.configure`."""
    check_admin(request)
    given = await read_object(request)
    try:
        return json_answer(await engine.configure(check_changes(given, engine.size)))
    except ConfigError as error:
        raise RequestRefused(str(error)) from error
