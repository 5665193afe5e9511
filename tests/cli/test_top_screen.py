"""``sere top`` on a terminal, against a stand-in for a server that goes and comes back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sere.cli import main, top
from sere.engines.server import free_port
from sere.integrations.vllm.live.page import LIVE
from sere.integrations.vllm.live.view import Live, since_of
from tests.support.terminal import Screen, on_terminal, run_on_terminal
from tests.support.vllm.live import joined

pytest.importorskip("rich", reason="needs rich, the extra terminal")


@contextmanager
def served(port: int, title: str, layers: int = 2, *, keep: bool = False) -> Iterator[set[Any]]:
    """Answer as a server does whose engine made five steps since the last answer.

    Args:
        port: On which it listens.
        title: The model's.
        layers: How many it has.
        keep: Whether connections stay open.

    Yields:
        Where the questions came from.
    """
    live, answers, connections = Live(title), iter(range(1, 1000)), set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1" if keep else "HTTP/1.0"

        def do_GET(self) -> None:
            connections.add(self.client_address)
            at = next(answers)
            live.add(joined(5 * at, tier="safe", layers=layers), float(at))
            where = urlsplit(self.path)
            body = live.body(since_of(parse_qs(where.query)["since"][0])).encode()
            self.send_response(200 if where.path == LIVE else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield connections
        finally:
            server.shutdown()
            thread.join()


def watch(
    monkeypatch: pytest.MonkeyPatch, port: int, *seconds: Callable[[], object], term: str = "xterm"
) -> Screen:
    """Run ``sere top`` on a terminal: what happens in each second, then Ctrl-C; return the screen."""
    left = iter(seconds)

    def sleep(_: float) -> None:
        for act in left:
            act()
            return
        raise KeyboardInterrupt

    monkeypatch.setattr(top, "time", SimpleNamespace(sleep=sleep))
    with on_terminal(monkeypatch, "stdout", 80, term=term) as screen:
        assert main(["top", f"127.0.0.1:{port}"]) == 0
    return screen


def nothing() -> None:
    """A second in which the server goes on."""


def test_a_server_goes_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is away the last figures stay below why; the one that comes back has figures of its own."""
    port = free_port()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(served(port, "first"))
        screen = watch(
            monkeypatch, port, nothing, first.close, nothing,
            lambda: second.enter_context(served(port, "second")), nothing,
        )  # fmt: skip
    frames = [" ".join(frame.split()) for frame in screen.text.split("sere ")[1:]]
    titles = [frame.split()[0] for frame in frames]
    assert titles == ["first"] * 4 + ["second"] * 2
    # What is written above the figures of the third and fourth frame ends the one before.
    assert ["no answer since" in frame for frame in frames] == [False, True, True, False, False, False]
    assert "first on, tier safe" in frames[0]
    assert all("8.0 -> 4.0" in frame for frame in frames)


def test_the_screen_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are on a screen of their own, with colors; Ctrl-C brings back what was there before."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    port = free_port()
    with served(port, "one"):
        screen = watch(monkeypatch, port, nothing)
    assert screen.raw.startswith("\x1b[?1049h")
    assert screen.raw.rstrip().endswith("\x1b[?1049l")
    assert screen.has_colors


def test_one_connection_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several server processes one answers each second, so that lines and changes are those of one."""
    port = free_port()
    with served(port, "one", keep=True) as connections:
        screen = watch(monkeypatch, port, nothing, nothing)
    assert screen.text.count("sere one  on, tier safe") == 3
    assert len(connections) == 1


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR the same is shown without colors."""
    monkeypatch.setenv("NO_COLOR", "1")
    port = free_port()
    with served(port, "one"):
        screen = watch(monkeypatch, port, nothing)
    assert "sere one  on, tier safe" in screen.text
    assert not screen.has_colors


def test_a_dumb_terminal_gets_the_figures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written over there: without colors or a screen of their own."""
    port = free_port()
    with served(port, "one"):
        screen = watch(monkeypatch, port, nothing, term="dumb")
    assert "\x1b" not in screen.raw
    assert screen.text.count("sere one  on, tier safe") == 1
    assert "(last 1 s)" in screen.text


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    """As a process of its own, which asks the terminal for its width."""
    port = free_port()
    program = f"import sys; from sere.cli import main; sys.exit(main(['top', '127.0.0.1:{port}', '--once']))"
    with served(port, "one", layers=4):
        code, screen = run_on_terminal([sys.executable, "-c", program], columns)
    assert code == 0
    assert max(map(len, screen.lines)) <= columns
    assert sum(line.split()[0] in "0123" for line in screen.lines) == 4
    assert screen.has_colors
