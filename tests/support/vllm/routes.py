"""A server with our routes and an engine that answers from memory."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from sere.config import RerouteConfig
from sere.integrations.vllm.client.http_routes import Endpoint
from tests.support.vllm.metrics import report_without_layers

JSON = "application/json"
AGREED: dict[str, Any] = {"common": "", "layers": {}}
"""The fingerprint of every worker here."""


class Engine:
    """An engine client whose one worker answers from memory; the model has 6 layers of 16 experts.

    Attributes:
        asked: The methods of the worker that were called.
        steps: What the worker counted.
        unfinished: How many requests are under way.
        errored: Whether the engine is dead.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.changes: dict[str, Any] = {}
        self.steps, self.unfinished, self.errored = 1, 0, False
        self.engine_core = SimpleNamespace(add_request_async=self._take)
        self.output_processor = SimpleNamespace(get_num_unfinished_requests=lambda: self.unfinished)
        model = SimpleNamespace(
            hf_text_config=SimpleNamespace(num_hidden_layers=6), get_num_experts=lambda: 16
        )
        self.vllm_config = SimpleNamespace(
            additional_config={"sere": {}},
            model_config=model,
            parallel_config=SimpleNamespace(_api_process_count=1),
        )

    async def _take(self, request: Any) -> None:
        """Take a request and finish it in one step."""
        self.steps += 1

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:  # noqa: D102
        self.asked.append(method)
        settings = RerouteConfig(select_top_k=2, table="/home/somebody/secret.safetensors").to_mapping()
        if method == "sere_configure":
            if args[0] == "propose":
                self.changes = args[1]
                return [{"fingerprint": AGREED}]
            return [settings | {"enabled": True} | self.changes]
        counted = report_without_layers(rerouted=self.steps)
        if args == (True,):
            self.steps = 0
        return [counted | {"settings": settings, "top_k": 4, "num_experts": 16}]


class Failing(Engine):
    """An engine client whose worker fails in one way."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:  # noqa: D102
        raise self.error


class Answering(Engine):
    """An engine client whose one worker always answers the same."""

    def __init__(self, **answer: Any) -> None:
        super().__init__()
        self.answer = answer

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:  # noqa: D102
        return [self.answer]


def disabled(method: str) -> Exception:
    """What a worker without our methods answers, as with ``SERE_DISABLE``."""
    return RuntimeError(
        "Call to collective_rpc method failed: Worker failed with error ''CPUWorker' object has no "
        f"attribute {method!r}', please check the stack trace above for the root cause"
    )


def ask(
    method: str,
    route: str,
    engine: Any = None,
    body: Any = b'{"select_top_k": 3}',
    **headers: str | bytes | None,
) -> tuple[int, str]:
    """Ask a server with the key "mine" for a route; ``headers`` replace those of a good request.

    A route with a slash first is a path; others are below ``/v1/sere``.
    """
    from fastapi import FastAPI
    from httpx import ASGITransport, AsyncClient
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    path = route if route.startswith("/") else f"/v1/sere/{route}"
    app, endpoint = FastAPI(), Endpoint()
    app.add_middleware(AuthenticationMiddleware, tokens=["mine"])
    endpoint.attach_router(app)
    good = {"authorization": "Bearer mine", "x_sere_admin_key": "change", "content_type": JSON}
    sent = {name.replace("_", "-"): value for name, value in (good | headers).items() if value is not None}

    async def call() -> tuple[int, str]:
        await endpoint.init_state(engine or Engine(), app.state, None)
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            content = body if method == "POST" else None
            answer = await client.request(method, path, headers=sent, content=content)
        return answer.status_code, answer.text

    return asyncio.run(call())
