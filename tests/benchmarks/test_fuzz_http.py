"""What the fuzzer of the HTTP routes sends, and what it counts as wrong; the long run is started by hand."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

pytest.importorskip("hypothesis")

from fuzz_clients import Gap, Sender, Stream, Watch, spread
from fuzz_http import _fuzz_route
from fuzz_requests import ROUTES, Route
from sere.engines.server import free_port
from sere.integrations.vllm.client.http_routes import Endpoint
from sere.integrations.vllm.live.page import LIVE, PATH
from tests.support.patience import HANGS_S


class _Routes:
    """A web application that only notes its routes."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str]] = set()

    def add_route(self, path: str, _: object, methods: list[str]) -> None:
        self.found.update((method, path) for method in methods)


def test_every_route_is_fuzzed() -> None:
    """All routes that a server has are fuzzed, and what the port for metrics answers."""
    app = _Routes()
    Endpoint().attach_router(app)
    assert {(one.method, one.path) for one in ROUTES if not one.on_port} == app.found
    assert {one.path for one in ROUTES if one.on_port} == {"/metrics", LIVE, PATH}
    assert len({one.name for one in ROUTES}) == len(ROUTES)


class _Answers(BaseHTTPRequestHandler):
    """Refuses what is wrong, and fails where a query has a certain byte."""

    asked: list[str] = []  # noqa: RUF012 -- of each test

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(self.path)
        fails = self.server.server_name and "since" in self.path and self.path.startswith("/fails")
        self.send_response(500 if fails else 200 if self.headers.get("x-sere-admin-key") else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "wrong"), [("/fine", 0), ("/fails", 1)])
def test_an_error_of_the_server_is_found(url: str, path: str, wrong: int) -> None:
    """Whatever is sent, only a status from 500 on is wrong, and the request that led to it is kept."""
    sender = Sender(url, "key")
    _fuzz_route(sender, Route("POST", path), 60, 1)
    assert len(sender.wrong) == wrong
    assert all("/fails: 500" in text and "since" in text for text in sender.wrong)
    assert sender.statuses["200"] > 0


def test_a_server_that_does_not_answer() -> None:
    """A request without an answer in time is the server's fault; one more on a closed connection is none."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sender = Sender(f"http://127.0.0.1:{silent.getsockname()[1]}", patience_s=0.05)
        assert sender.send("GET", "/", b"", {}) == 504
    assert sender.send("GET", "/", b"", {}) == 499
    assert sender.statuses == {"no answer": 1, "closed": 1}


def test_a_stream_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader whose server is gone says so, and does not end in silence."""
    stream = Stream(SimpleNamespace(url=f"http://127.0.0.1:{free_port()}"))  # type: ignore[arg-type]
    stop = threading.Event()
    monkeypatch.setattr(stop, "is_set", lambda: bool(stream.wrong))
    stream._read(stop, [])
    (text,) = stream.wrong
    assert text.startswith("the stream broke off: ConnectionRefusedError")


def test_a_machine_that_pauses_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nap that takes longer than it should is a pause of the machine, and of nobody else."""
    sleep, woken = time.sleep, threading.Event()

    def late(seconds: float) -> None:
        sleep(seconds + 0.05)
        woken.set()

    monkeypatch.setattr(time, "sleep", late)
    watch = Watch()
    with watch.watching():
        assert woken.wait(HANGS_S)
    assert watch.longest_ms >= 50


def still(*waits: tuple[float, float]) -> Watch:
    """A watch that saw the machine stand still."""
    watch = Watch()
    watch.waits += [Gap(*wait) for wait in waits]
    return watch


@pytest.mark.parametrize(
    ("waits", "own"),
    [
        ([], 500.0),
        ([(9.0, 9.5), (11.0, 11.5)], 500.0),
        ([(10.1, 10.3)], 300.0),
        ([(9.0, 10.1), (10.2, 10.3), (10.4, 12.0)], 200.0),
        ([(9.0, 9.1), (9.9, 10.6)], 0.0),
    ],
    ids=["never", "before and after", "within", "three times", "all the while"],
)
def test_what_the_machine_took_is_not_the_server_s(waits: list[tuple[float, float]], own: float) -> None:
    """Of the time between two tokens, what a nap was late by meanwhile is taken off."""
    assert still(*waits).own_ms([Gap(10.0, 10.5)]) == pytest.approx([own])


def test_times_between_tokens_are_summed_up() -> None:
    """All of them, and the server's own."""
    found = spread([Gap(1.0, 1.01), Gap(2.0, 2.5), Gap(3.0, 3.3)], still((2.0, 2.45)))
    assert found == {
        "count": 3, "above_100_ms": 2, "own_above_100_ms": 1,
        "median": 300.0, "p99": 500.0, "p99_9": 500.0, "most": 500.0,
        "own_most": 300.0, "machine_most": 450.0,
    }  # fmt: skip
    assert spread([], Watch())["own_most"] == 0
