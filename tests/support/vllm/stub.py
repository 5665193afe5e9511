"""A server that is none: it streams tokens as ``vllm serve`` does, well or badly, and keeps what it gets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.patience import HANGS_S

TOKENS = 4
REFUSED, SPOILED, SHORT, CUT = 1000, 1001, 1002, 1003
"""First tokens of prompts that the stub treats badly."""


class Stub(ThreadingHTTPServer):
    """A server that streams tokens and keeps what it was asked; also what stands for a `Server`.

    Attributes:
        asked: Paths and bodies, in the order of their coming.
        most: Most completions at once.
        reason: Why nothing was re-routed, as it says while it is enabled.
    """

    daemon_threads = True
    reason: str | None = None

    def __init__(self, hold: int = 1) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, Any]] = []
        self.lock, self.now, self.most = threading.Lock(), 0, 0
        self.barrier = threading.Barrier(hold)
        self.enabled = True
        self.started: dict[str, Any] = {}

    def check(self) -> None:
        """Never end."""

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Answer as the routes of sere do."""
        self.asked.append((path, body))
        self.enabled = body.get("enabled", self.enabled)
        steps = 2 if self.enabled else 0
        layer = {
            "steps": steps,
            "rows": 8.0,
            "distinct_before": 6.0,
            "distinct_after": 3.0,
            "slots_rerouted": 0.5,
            "slots_computed": 0.75,
        }
        reason = self.reason if self.enabled else None
        layers = [layer | {"critical": 1.0}, layer | {"critical": 1.0, "steps": 0}]
        return 200, {"layers": layers, "kernel": "Stub", "expert_bytes": 10, "nothing_changed": reason}

    def completions(self) -> list[Any]:
        """Return the bodies of the completions."""
        return [body for path, body in self.asked if path == "/v1/completions"]


class Answering(BaseHTTPRequestHandler):
    """One connection of a stub."""

    server: Stub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Answer a completion, well or badly."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stub, first = self.server, body["prompt"][0]
        with stub.lock:
            stub.asked.append((self.path, body))
            stub.now += 1
            stub.most = max(stub.most, stub.now)
        stub.barrier.wait(timeout=HANGS_S)
        # Long enough that requests beyond a loop's concurrency would meet these.
        time.sleep(0.05)
        self.send_response(503 if first == REFUSED else 200)
        if first == CUT:
            self.send_header("Content-Length", "10000")
        self.end_headers()
        count = {REFUSED: 0, SPOILED: 1, SHORT: TOKENS - 1, CUT: 1}.get(first, body["max_tokens"])
        for token in range(count):
            self.event({"choices": [{"text": "", "token_ids": [token]}]})
        if first == SPOILED:
            self.event({"error": {"message": "spoiled"}})
        with stub.lock:
            stub.now -= 1

    def event(self, value: Any) -> None:
        """Send one event of the stream."""
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()


@contextmanager
def stub(hold: int = 1) -> Iterator[Stub]:
    server = Stub(hold)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
