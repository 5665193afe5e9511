"""Asking a server for what its page shows: addresses, keys, refusals."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

from sere.errors import ConfigError, ServerError
from sere.integrations.vllm.live.fetch import LiveServer, live_url
from sere.integrations.vllm.live.view import FORMAT
from tests.support.live_page import Page, serving


@contextmanager
def answering(status: int, body: str, **headers: str) -> Iterator[tuple[str, list[Any]]]:
    """A server with one answer, its address, and what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, *map(self.headers.get, ("Authorization", "Proxy-Authorization"))))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        do_CONNECT = do_GET

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield live_url(f"127.0.0.1:{server.server_port}"), asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1/sere/live"),
        ("https://host/", "https://host/v1/sere/live"),
        ("http://host/sere/", "http://host/v1/sere/live"),
        ("http://host/sere", "http://host/v1/sere/live"),
        ("http://host/prefix/sere/", "http://host/prefix/v1/sere/live"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    """The server's address and the page's mean the same."""
    assert live_url(given) == url


@pytest.mark.parametrize(
    "given", ["", "file:///etc/passwd", "ftp://host", "http://:80", "host:port", "http://[::1"]
)
def test_no_address(given: str) -> None:
    """What is no server's address is refused before anything is asked."""
    with pytest.raises(ConfigError, match="URL: expected a server's address such as"):
        live_url(given)


def test_the_key_and_the_moment_are_sent() -> None:
    """The key as the server takes it, and from when on points are asked for."""
    with answering(200, json.dumps({"now": {"format": FORMAT}, "points": []})) as (url, asked):
        with LiveServer(url, "mine") as server:
            assert server.fetch(12.5)["points"] == []
        assert asked == [("/v1/sere/live?since=12.500", "Bearer mine", None)]


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (401, "", "the server asks for its key; set VLLM_API_KEY to it"),
        (404, "", "the server has no routes of sere; start it with sere among VLLM_PLUGINS"),
        (503, '{"error": "not active"}', "the server answers 503: not active"),
        (500, "oh", "the server answers 500: Internal Server Error"),
        (200, "hello", "is it running?"),
        (200, "[]", "expected a server with the same version of sere"),
        (200, '{"now": null}', "expected a server with the same version of sere"),
    ],
)
def test_refusals(status: int, body: str, text: str) -> None:
    """Each way to fail says what to do."""
    with answering(status, body) as (url, _), LiveServer(url) as server, pytest.raises(ServerError) as raised:
        server.fetch()
    assert text in str(raised.value)


def test_no_server() -> None:
    """A server that is not there is named."""
    with (
        LiveServer("http://127.0.0.1:1/v1/sere/live") as server,
        pytest.raises(ServerError, match=r"does not answer .*is it running"),
    ):
        server.fetch()


def test_another_address() -> None:
    """A server that sends clients elsewhere says where; the key is not sent there."""
    with (
        answering(307, "", Location="https://other.test/v1/sere/live?since=0") as (url, _),
        LiveServer(url, "mine") as server,
        pytest.raises(ServerError, match=r"another address, https://other.test/v1/sere/live; give that"),
    ):
        server.fetch()


def test_one_connection_is_kept() -> None:
    """All questions of one viewer go to one process, which each new connection might change."""
    with serving(Page()) as page, LiveServer(page.url) as server:
        for _ in range(3):
            server.fetch()
        assert len(page.asked) == 3
        assert len(page.connections) == 1


def test_a_connection_that_was_closed_is_opened_again() -> None:
    """A server closes connections, for example when it is started again: the next question is answered."""
    with serving(Page(close=True)) as page, LiveServer(page.url) as server:
        for _ in range(3):
            server.fetch()
        assert len(page.asked) == 3
        assert len(page.connections) == 3


def test_after_a_failure_the_next_question_has_its_own_answer() -> None:
    """A refusal leaves the connection as it was."""
    with serving(Page(good=1)) as page, LiveServer(page.url) as server:
        server.fetch()
        with pytest.raises(ServerError, match="the server answers 503"):
            server.fetch()
        page.good = 3
        assert server.fetch()["points"] == []
        assert len(page.connections) == 1


PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxies, to set some."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_proxy_is_asked(proxies: pytest.MonkeyPatch) -> None:
    """For the complete address, with the name and password of the proxy's address; not for this machine."""
    with answering(200, json.dumps({"now": {"format": FORMAT}})) as (url, asked):
        proxies.setenv("http_proxy", url.replace("//", "//name:pass%20word@"))
        for given in ("http://server.test:8000/v1/sere/live", url):
            with LiveServer(given, "mine") as server:
                server.fetch()
    assert asked == [
        ("http://server.test:8000/v1/sere/live?since=0.000", "Bearer mine", "Basic bmFtZTpwYXNzIHdvcmQ="),
        ("/v1/sere/live?since=0.000", "Bearer mine", None),
    ]


def test_a_proxy_opens_a_tunnel(proxies: pytest.MonkeyPatch) -> None:
    """To a server with TLS; the server's key is not for the proxy."""
    with answering(502, "") as (url, asked):
        proxies.setenv("https_proxy", url.replace("//", "//name:pass%20word@"))
        with (
            LiveServer("https://server.test/v1/sere/live", "mine") as server,
            pytest.raises(ServerError, match="Tunnel connection failed: 502"),
        ):
            server.fetch()
    assert asked == [("server.test:443", None, "Basic bmFtZTpwYXNzIHdvcmQ=")]


@pytest.mark.parametrize("name", ["127.0.0.2", "127.0.0.2:PORT"])
def test_a_server_that_no_proxy_names(name: str, proxies: pytest.MonkeyPatch) -> None:
    """It is asked directly, also where it is named with its port; another port's server is not meant."""
    with answering(200, json.dumps({"now": {"format": FORMAT}})) as (url, asked):
        port = urlsplit(url).port
        proxies.setenv("http_proxy", url)
        proxies.setenv("no_proxy", name.replace("PORT", str(port)))
        with LiveServer(f"http://127.0.0.2:{port}/v1/sere/live") as server, pytest.raises(ServerError):
            server.fetch()  # nobody listens there
        assert asked == []
        proxies.setenv("no_proxy", "127.0.0.2:1")
        with LiveServer(f"http://127.0.0.2:{port}/v1/sere/live") as server:
            server.fetch()
        assert len(asked) == 1


@pytest.mark.parametrize("given", ["socks5://127.0.0.1:1080", "http://name:secret@host:port"])
def test_no_proxy(given: str, proxies: pytest.MonkeyPatch) -> None:
    """What is no proxy's address is refused by the variable's name, without what may be a password."""
    proxies.setenv("http_proxy", given)
    with pytest.raises(ConfigError, match="http_proxy: expected a proxy's address such as") as raised:
        LiveServer("http://server.test/v1/sere/live")
    assert "secret" not in str(raised.value)
