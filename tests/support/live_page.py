"""A server that is none: it answers viewers of a live page, well or badly, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sere.integrations.vllm.live.view import FORMAT


class Page(ThreadingHTTPServer):
    """What answers like a live page.

    Attributes:
        asked: What was asked, in order.
        connections: Where the questions came from.
    """

    daemon_threads = True

    def __init__(self, wait_s: float = 0.0, good: int = 10**6, close: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self.server_port}/sere/live"
        self.wait_s, self.good, self.close_each = wait_s, good, close
        self.points: list[list[dict[str, float]]] = []
        self.lock = threading.Lock()
        self.asked: list[str] = []
        self.connections: set[Any] = set()


class Answering(BaseHTTPRequestHandler):
    """Its handler, which keeps connections open."""

    protocol_version = "HTTP/1.1"
    server: Page

    def do_GET(self) -> None:
        """Answer with points; with 503 after the good answers."""
        with self.server.lock:
            self.server.asked.append(self.path)
            self.server.connections.add(self.client_address)
            good = len(self.server.asked) <= self.server.good
            points = self.server.points.pop(0) if self.server.points else []
        time.sleep(self.server.wait_s)
        body = json.dumps({"now": {"format": FORMAT}, "points": points}).encode()
        self.send_response(200 if good else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection |= self.server.close_each

    def log_message(self, *given: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(page: Page) -> Iterator[Page]:
    """Let it answer while the block runs."""
    thread = threading.Thread(target=page.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield page
    finally:
        page.shutdown()
        page.server_close()
        thread.join()
