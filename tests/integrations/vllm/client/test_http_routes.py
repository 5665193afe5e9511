"""The routes: behind vLLM's own authentication, without paths of the server's files."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.config import RerouteConfig
from sere.integrations.vllm.client.http_routes import Endpoint
from sere.integrations.vllm.step_counts import StepCounts

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

ROUTES = (("GET", "stats"), ("GET", "metrics"), ("POST", "reset"), ("POST", "settings"))


class Engine:
    """An engine client whose one worker answers from memory."""

    resets = 0

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:  # noqa: D102
        settings = RerouteConfig(select_top_k=2, table="/home/somebody/secret.safetensors").to_mapping()
        if method == "sere_configure":
            if args[0] == "propose":
                return [{"fingerprint": {"common": "", "layers": {}}}]
            return [settings | {"enabled": True}]
        if args[0]:
            self.resets += 1
        answer = {"enabled": True, "settings": settings, "steps": StepCounts(rerouted=1).to_mapping()}
        shape = {"layers": [], "top_k": 4, "num_experts": 16, "count_only": False, "request_tiers": []}
        answer |= {"fingerprint": {"common": "", "layers": {}}, "data_parallel_rank": 0}
        return [answer | shape | {"kernel": None, "expert_bytes": None}]


class Disabled:
    """An engine client whose worker has none of our methods, as with ``SERE_DISABLE``."""

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:  # noqa: D102
        raise RuntimeError(
            "Call to collective_rpc method failed: Worker failed with error ''CPUWorker' object has no "
            f"attribute {method!r}', please check the stack trace above for the root cause"
        )


def ask(
    method: str, route: str, key: str | None, engine: Any = None, body: bytes = b'{"select_top_k": 3}'
) -> tuple[int, str]:
    """Ask a server with the key "mine" for a route."""
    from fastapi import FastAPI
    from httpx import ASGITransport, AsyncClient
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    app, endpoint = FastAPI(), Endpoint()
    app.add_middleware(AuthenticationMiddleware, tokens=["mine"])
    endpoint.attach_router(app)

    async def call() -> tuple[int, str]:
        await endpoint.init_state(engine or Engine(), app.state, None)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            content = body if method == "POST" else None
            answer = await client.request(method, f"/v1/sere/{route}", headers=headers, content=content)
        return answer.status_code, answer.text

    return asyncio.run(call())


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_routes_ask_for_the_key(method: str, route: str) -> None:
    """Without the server's key, or with another, no route answers; with it all do."""
    assert ask(method, route, None)[0] == 401
    assert ask(method, route, "another")[0] == 401
    assert ask(method, route, "mine")[0] == 200


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_no_paths_of_files(method: str, route: str) -> None:
    """What a route answers does not say where the table lies on the server."""
    text = ask(method, route, "mine")[1]
    assert "secret" not in text
    assert "table" not in text


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_disabled_by_the_environment(method: str, route: str) -> None:
    """Where the environment disabled the plug-in, a route says so; nothing fails inside the server."""
    status, text = ask(method, route, "mine", Disabled())
    assert status == 409
    assert "re-routing is not active in this engine" in text
    assert "SERE_DISABLE" in text


@pytest.mark.parametrize(
    ("body", "came"),
    [
        (b"", "got something that is not JSON"),
        (b"select_top_k=3", "got something that is not JSON"),
        (b"\xff", "got something that is not JSON"),
        (b"[" * 100_000, "got something that is not JSON"),
        (b"[3]", "got list"),
        (b"null", "got NoneType"),
    ],
    ids=["nothing", "form", "bytes", "deep", "list", "null"],
)
def test_body_that_is_no_object(body: bytes, came: str) -> None:
    """Settings that are no JSON object are refused with 400 and what was expected."""
    status, text = ask("POST", "settings", "mine", body=body)
    assert status == 400
    assert f'expected a JSON object of settings, such as {{\\"threshold\\": 0.3}}, {came}' in text
