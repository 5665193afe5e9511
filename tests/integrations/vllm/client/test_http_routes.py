"""The routes: behind vLLM's own authentication and a key for changes, without paths of the server's files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.integrations.vllm.client.body import MOST_BYTES
from sere.integrations.vllm.client.http_routes import Endpoint
from tests.support.vllm.routes import AGREED, JSON, Answering, Engine, Failing, ask, disabled

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

ROUTES = (("GET", "stats"), ("GET", "metrics"), ("POST", "reset"), ("POST", "settings"))
CHANGING = ROUTES[2:]


@pytest.fixture(autouse=True)
def _operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server lets whoever has the key "change" change it."""
    monkeypatch.setenv("SERE_ADMIN_KEY", "change")


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_routes_ask_for_the_key(method: str, route: str) -> None:
    """Without the server's key, or with another, no route answers; with it all do."""
    assert ask(method, route, authorization=None)[0] == 401
    assert ask(method, route, authorization="Bearer another")[0] == 401
    assert ask(method, route)[0] == 200


@pytest.mark.parametrize(("method", "route"), CHANGING)
@pytest.mark.parametrize(
    "key", [None, "", "another", b"chang\xe9"], ids=["none", "empty", "another", "accent"]
)
def test_changes_ask_for_the_key_of_the_operator(method: str, route: str, key: str | bytes | None) -> None:
    """The key with which clients ask for completions changes nothing; the text says which key does."""
    engine = Engine()
    status, text = ask(method, route, engine, x_sere_admin_key=key)
    assert status == 401
    assert "expected the key of SERE_ADMIN_KEY in the header X-Sere-Admin-Key" in text
    assert engine.asked == []


@pytest.mark.parametrize(("method", "route"), CHANGING)
@pytest.mark.parametrize("sent", [None, "", "change"], ids=["none", "empty", "some"])
def test_changes_are_off_unless_there_is_such_a_key(
    method: str, route: str, sent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without ``SERE_ADMIN_KEY`` lets nobody change anything, and is still read."""
    monkeypatch.delenv("SERE_ADMIN_KEY")
    engine = Engine()
    status, text = ask(method, route, engine, x_sere_admin_key=sent)
    assert status == 403
    assert "start the server with SERE_ADMIN_KEY in its environment" in text
    assert engine.asked == []
    assert ask("GET", "stats")[0] == 200


def test_keys_of_any_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key may have letters beyond ASCII, sent as UTF-8."""
    monkeypatch.setenv("SERE_ADMIN_KEY", "schl\xfcssel")
    assert ask("POST", "reset", x_sere_admin_key="schl\xfcssel".encode())[0] == 200


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_no_paths_of_files(method: str, route: str) -> None:
    """What a route answers does not say where the table lies on the server."""
    text = ask(method, route)[1]
    assert "secret" not in text


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_disabled_by_the_environment(method: str, route: str) -> None:
    """Where the environment disabled the plug-in, a route says so, and that it is not the client's fault."""
    called = "sere_configure" if route == "settings" else "sere_stats"
    status, text = ask(method, route, Failing(disabled(called)))
    assert status == 503
    assert "re-routing is not active in this engine" in text
    assert "SERE_DISABLE" in text
    assert "VLLM_PLUGINS" in text


@pytest.mark.parametrize(("method", "route"), ROUTES)
@pytest.mark.parametrize("error", [ValueError, LookupError, TypeError, RuntimeError])
def test_errors_that_nobody_expects_are_the_server_s(method: str, route: str, error: type[Exception]) -> None:
    """What fails inside is not taken for a client's fault, whatever its class."""
    with pytest.raises(error, match="a real bug"):
        ask(method, route, Failing(error("a real bug")))


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        ({"error": "tier: the table has no tier 'slow'"}, 400, "tier: the table has no tier 'slow'"),
        ({"failure": "rank 0: full"}, 500, "rank 0: full while the change was prepared; nothing has changed"),
        ({"fingerprint": AGREED, "stale": True}, 409, "another change came in between: nothing has changed"),
    ],
    ids=["refused", "failed", "met another"],
)
def test_changes_that_workers_do_not_make(answer: dict[str, Any], status: int, text: str) -> None:
    """Only what does not fit the table is the client's fault; each answer has the workers' reason."""
    found, body = ask("POST", "settings", Answering(**answer), b'{"tier": "slow"}')
    assert found == status
    assert json.loads(body)["error"].startswith(text)


def test_all_engines_of_a_server_are_asked() -> None:
    """With data parallelism the statistics are those of every engine, not of the first alone."""
    engine = Engine()

    async def ask_all(*given: Any) -> list[Any]:
        assert given[:2] == ("collective_rpc", "sere_stats")
        (answer,) = await engine.collective_rpc(given[1], given[3])
        return [[answer | {"data_parallel_rank": number}] for number in range(3)]

    engine.vllm_config.parallel_config = SimpleNamespace(data_parallel_size=3)
    engine.engine_core = SimpleNamespace(call_utility_all_async=ask_all)  # type: ignore[attr-defined]
    status, text = ask("GET", "stats", engine)
    assert (status, json.loads(text)["steps_rerouted"]) == (200, 3)


@pytest.mark.parametrize(
    ("body", "came"),
    [
        (b"", "got something that is not JSON"),
        (b"select_top_k=3", "got something that is not JSON"),
        (b"\xff", "got something that is not JSON"),
        (b"[" * 100_000, "got something that is not JSON"),
        (b'{"threshold": ' + b"9" * 5000 + b"}", "got something that is not JSON"),
        (b"[3]", "got list"),
        (b"null", "got NoneType"),
    ],
    ids=["nothing", "form", "bytes", "deep", "digits", "list", "null"],
)
def test_body_that_is_no_object(body: bytes, came: str) -> None:
    """Settings that are no JSON object are refused with 400 and what was expected."""
    engine = Engine()
    status, text = ask("POST", "settings", engine, body)
    assert status == 400
    assert f'expected a JSON object of settings, such as {{\\"threshold\\": 0.3}}, {came}' in text
    assert engine.asked == []


DEEP = b'{"keep": {"0": ' + b"[" * 900 + b"]" * 900 + b"}}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"keep": {"0": [%s]}}' % b",".join([b"9"] * 50_000), "at most 16 experts, got 50000 ids"),
        (b'{"treshold": 1}', "did you mean 'threshold'?"),
        (rb'{"\ud800": "\ud800"}', "cannot be changed while the engine runs"),
        (DEEP, "keep: layer 0: expected expert ids"),
    ],
    ids=["ids", "misspelled", "surrogate", "deep"],
)
def test_changes_refused_before_any_worker_is_asked(body: bytes, text: str) -> None:
    """Types, sizes and names are checked by the server alone: the engine does not even pause for them."""
    engine = Engine()
    status, answer = ask("POST", "settings", engine, body)
    assert status == 400
    assert text in json.loads(answer)["error"]
    assert len(answer) < 1500
    assert engine.asked == []


def test_numbers_that_no_message_carries() -> None:
    """A threshold of more than 64 bits, which is a number like any other, reaches the workers as a float."""
    status, text = ask("POST", "settings", body=b'{"threshold": 1' + b"0" * 30 + b"}")
    assert (status, json.loads(text)["threshold"]) == (200, 1e30)


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
def test_bodies_of_another_kind(kind: str | None) -> None:
    """Only a body that is called JSON is read: a form on some other web page cannot send one."""
    engine = Engine()
    status, text = ask("POST", "settings", engine, content_type=kind)
    assert status == 415
    assert "with the header Content-Type: application/json" in text
    assert engine.asked == []


def test_media_types_have_parameters() -> None:
    """A character set behind the media type changes nothing."""
    assert ask("POST", "settings", content_type="Application/JSON; charset=utf-8")[0] == 200


@pytest.mark.parametrize(("method", "route"), CHANGING)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_large_bodies(method: str, route: str, chunked: bool) -> None:
    """A body above the limit is refused, whether its length is announced or not, before all of it is read."""
    read = []

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            read.append(1)
            yield b" " * 65536

    engine = Engine()
    status, text = ask(method, route, engine, chunks() if chunked else b" " * (MOST_BYTES + 1))
    assert status == 413
    assert f"expected a body of at most {MOST_BYTES} bytes" in text
    assert engine.asked == []


@pytest.mark.parametrize(("method", "route"), CHANGING)
def test_connections_that_break_off(method: str, route: str) -> None:
    """A client that goes away within its body gets no error of the server's into the log."""
    from starlette.applications import Starlette

    app, endpoint, engine, sent = Starlette(), Endpoint(), Engine(), []
    endpoint.attach_router(app)
    headers = [(b"x-sere-admin-key", b"change"), (b"content-type", JSON.encode())]
    scope = {"type": "http", "method": method, "path": f"/v1/sere/{route}", "query_string": b"",
             "headers": headers, "http_version": "1.1", "scheme": "http", "root_path": ""}  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def call() -> None:
        await endpoint.init_state(engine, app.state, None)
        await app(scope, receive, send)

    asyncio.run(call())
    assert sent[0]["status"] == 400
    assert engine.asked == []
