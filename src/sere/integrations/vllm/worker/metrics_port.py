"""The separate port on which a worker serves its Prometheus metrics."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sere.errors import ConfigError
from sere.integrations.vllm.prometheus import Collector
from sere.integrations.vllm.worker.live_port import LivePort

logger = logging.getLogger("vllm.sere")


def check_port(host: str, port: int) -> None:
    """Open a port and close it again.

    An engine whose worker fails after its model is loaded may hang instead of ending: its process then waits
    without a limit for the worker. So a port that somebody has is to be found before.

    Args:
        host: Address to listen on.
        port: Port to listen on.

    Raises:
        ConfigError: The port cannot be opened; the text says what to do.
    """
    with _named_error(host, port):
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()


def serve_metrics(
    read: Callable[[], Mapping[str, Any]], host: str, port: int, *, live_page: bool = False
) -> Callable[[], None]:
    """Serve metrics, and what the live page shows, until the worker ends.

    Args:
        read: Returns what the worker has counted.
        host: Address to listen on; ``"0.0.0.0"`` for all of the machine's.
        port: Port to listen on.
        live_page: Whether the live page itself is there, too.

    Returns:
        What closes the port; it may be called again.

    Raises:
        ConfigError: The port cannot be opened; the text says what to do.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(Collector(lambda: [read()]))
    with _named_error(host, port):
        server, thread = start_http_server(port, addr=host, registry=registry)
    server.set_app(LivePort(read, server.get_app(), live_page=live_page))
    logger.info("sere: Prometheus metrics on http://%s:%d/metrics", host, port)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close


@contextmanager
def _named_error(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"metrics_port: expected a free port, but {host}:{port} cannot be opened ({error}); choose "
            "another port or metrics_host, or omit metrics_port"
        ) from error
