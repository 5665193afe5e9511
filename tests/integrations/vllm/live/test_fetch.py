"""Asking a server for what its page shows: addresses, keys, refusals."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from sere.errors import ConfigError, ServerError
from sere.integrations.vllm.live.fetch import fetch_live, live_url
from sere.integrations.vllm.live.view import FORMAT


@contextmanager
def answering(status: int, body: str) -> Iterator[tuple[str, list[Any]]]:
    """A server with one answer, its address, and what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

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


@pytest.mark.parametrize("given", ["", "file:///etc/passwd", "ftp://host"])
def test_no_address(given: str) -> None:
    """What is no server's address is refused before anything is asked."""
    with pytest.raises(ConfigError, match="URL: expected a server's address such as"):
        live_url(given)


def test_the_key_and_the_moment_are_sent() -> None:
    """The key as the server takes it, and from when on points are asked for."""
    with answering(200, json.dumps({"now": {"format": FORMAT}, "points": []})) as (url, asked):
        assert fetch_live(url, "mine", 12.5)["points"] == []
        assert asked == [("/v1/sere/live?since=12.500", "Bearer mine")]


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
    with answering(status, body) as (url, _), pytest.raises(ServerError) as raised:
        fetch_live(url)
    assert text in str(raised.value)


def test_no_server() -> None:
    """A server that is not there is named."""
    with pytest.raises(ServerError, match=r"does not answer .*is it running"):
        fetch_live("http://127.0.0.1:1/v1/sere/live")
