"""The live page on the port for metrics: what one worker counted, to look at and not to change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from sere.integrations.vllm.engine_stats import join_answers
from sere.integrations.vllm.live.page import LIVE, OFF, PATH, page
from sere.integrations.vllm.live.view import Live, since_of

READ_ONLY = (
    "nothing can be changed on the port for metrics: open the page on the server's own port, with "
    "SERE_ADMIN_KEY in its environment, or use the Python function configure"
)

Answer = Iterable[bytes]
App = Callable[[dict[str, Any], Callable[..., Any]], Answer]


class LivePort:
    """A WSGI application: the page, what it shows, and everything else from another application.

    Args:
        read: Returns what the worker has counted, the same object until it reads again.
        others: Answers all other paths.
        live_page: Whether the page is there.
    """

    def __init__(self, read: Callable[[], Mapping[str, Any]], others: App, *, live_page: bool) -> None:
        self._read, self._others, self._live_page = read, others, live_page
        self._live = Live(read_only=READ_ONLY)
        self._lock = threading.Lock()
        self._added: Mapping[str, Any] | None = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Answer:
        """Answer one request."""
        path = environ.get("PATH_INFO")
        if path == LIVE:
            body = self._body(environ.get("QUERY_STRING", "")).encode()
            start_response("200 OK", [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
            return [body]
        if path != PATH:
            return self._others(environ, start_response)
        if not self._live_page:
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{OFF}\n".encode()]
        document, headers = page()
        start_response("200 OK", list(headers.items()))
        return [document]

    def _body(self, query: str) -> str:
        # Read within the lock, so that no report is added after a newer one of another thread.
        with self._lock:
            report = self._read()
            if report is not self._added:
                self._added = report
                self._live.add(join_answers([report]))
        return self._live.body(since_of(parse_qs(query).get("since", [""])[0]))
