"""The page in a browser, and a server whose answers come when the test says so."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sere.integrations.vllm.live.page import PATH, page
from sere.integrations.vllm.live.view import Live, since_of
from tests.support.browser import browser, until, watched
from tests.support.patience import HANGS_S
from tests.support.vllm.live import joined


class Answers(ThreadingHTTPServer):
    """A server with the page, whose engine makes five steps between two questions.

    Attributes:
        enabled: Whether re-routing is on, which a change sets.
        holding: Whether answers of the page's figures wait; each has what held when it was asked for.
        held: For each answer that waits, what lets it go.
    """

    def __init__(self, live: Live) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.enabled, self.holding = True, False
        self.held: queue.Queue[threading.Event] = queue.Queue()
        self._live, self._asked, self._lock = live, 0, threading.Lock()

    def figures(self, since: float) -> bytes:
        """What holds now."""
        with self._lock:
            self._asked += 1
            self._live.add(joined(5 * self._asked) | {"enabled": self.enabled}, float(self._asked))
            return self._live.body(since).encode()


class Handler(BaseHTTPRequestHandler):
    """Its handler."""

    server: Answers

    def do_GET(self) -> None:
        """Answer with the page or its figures."""
        where = urlsplit(self.path)
        if where.path == PATH:
            document, headers = page()
            self._send(document, headers)
            return
        figures = self.server.figures(since_of(parse_qs(where.query)["since"][0]))
        if self.server.holding:
            go = threading.Event()
            self.server.held.put(go)
            assert go.wait(HANGS_S)
        self._send(figures, {"Content-Type": "application/json"})

    def do_POST(self) -> None:
        """Make a change."""
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.enabled = given["enabled"]
        self._send(json.dumps(given).encode(), {"Content-Type": "application/json"})

    def _send(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def answers(live: Live) -> Iterator[tuple[Answers, str]]:
    with Answers(live) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


def state(text: str) -> str:
    return f"document.getElementById('state-text').textContent === {text!r}"


def test_an_answer_from_before_a_change_is_not_shown(chromium: Any) -> None:
    """Asked for before the switch was pressed, it would flip the switch back; the page asks anew at once."""
    with answers(Live()) as (server, url), watched(chromium, url) as (shown, complaints):
        until(shown, state("On"))
        shown.fill("#admin-key", "change")
        server.holding = True
        before = server.held.get(timeout=HANGS_S)
        shown.click("#switch")
        until(shown, "document.getElementById('answer').textContent.endsWith('re-routing: off')")
        before.set()
        # Whoever has asked again has seen the answer before.
        after = server.held.get(timeout=HANGS_S)
        assert shown.get_attribute("#switch", "aria-checked") == "false"
        server.holding = False
        after.set()
        until(shown, state("Off"))
        assert shown.get_attribute("#switch", "aria-checked") == "false"
        assert complaints == []


@pytest.mark.parametrize("processes", [1, 4])
def test_of_several_server_processes_one_is_shown(chromium: Any, processes: int) -> None:
    """The page says that another one has seen something else."""
    with answers(Live(processes=processes)) as (_, url), watched(chromium, url) as (shown, complaints):
        until(shown, state("On"))
        assert shown.is_visible("#processes") is (processes > 1)
        assert shown.inner_text("#processes").startswith("From 1 of 4 server processes") is (processes > 1)
        assert complaints == []
