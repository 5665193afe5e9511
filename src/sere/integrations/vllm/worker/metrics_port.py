"""The separate port on which a worker serves its Prometheus metrics."""

from __future__ import annotations

import logging
import socket
import threading
import weakref
from collections.abc import Callable, Mapping
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from sere.errors import ConfigError
from sere.integrations.vllm.prometheus import Collector
from sere.integrations.vllm.worker.live_port import Answer, LivePort

logger = logging.getLogger("vllm.sere")

NOT_YET = "the model is being loaded or warmed up: there is nothing to read yet\n"


class MetricsPort:
    """The port of one worker: opened before the model is loaded, and read once that is ready.

    A port that cannot be opened is found at once, and nobody else gets it meanwhile. Later would be too late:
    where a worker fails after its model is loaded, vLLM's engine process waits for it without a limit.

    Args:
        host: Address to listen on; ``"0.0.0.0"`` for all of the machine's.
        port: Port to listen on.

    Raises:
        ConfigError: The port cannot be opened; the text says what to do.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._server = _server(family, address)
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                f"metrics_port: expected a free port, but {host}:{port} cannot be opened ({error}); choose "
                "another port or metrics_host, or omit metrics_port"
            ) from error
        self.pause()
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        # Also where a start fails in the user's own process.
        self._close = weakref.finalize(self, _close, self._server, thread)
        self._close.atexit = False

    def pause(self) -> None:
        """Answer that there is nothing to read, until `serve` is called."""
        self._server.set_app(_not_yet)

    def serve(self, read: Callable[[], Mapping[str, Any]], *, live_page: bool = False) -> None:
        """Serve metrics, and what the live page shows, from now on.

        Args:
            read: Returns what the worker has counted.
            live_page: Whether the live page itself is there, too.
        """
        from prometheus_client import CollectorRegistry, make_wsgi_app

        registry = CollectorRegistry()
        registry.register(Collector(lambda: [read()]))
        self._server.set_app(LivePort(read, make_wsgi_app(registry), live_page=live_page))
        logger.info("sere: Prometheus metrics on http://%s:%d/metrics", self._host, self._port)

    def close(self) -> None:
        """Close the port; it may be closed again."""
        self._close()


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log nothing: readers ask each second."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name, which can take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


def _server(family: int, address: Any) -> WSGIServer:
    class Server(_Server):
        address_family = family

    return Server(address, _Handler)


def _close(server: WSGIServer, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()


def _not_yet(_: Mapping[str, Any], start_response: Callable[..., Any]) -> Answer:
    start_response("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
    return [NOT_YET.encode()]
