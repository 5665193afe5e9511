"""A port of its own on which a worker serves its Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sere.errors import ConfigError
from sere.integrations.vllm import engine_stats
from sere.integrations.vllm.prometheus import Collector

if TYPE_CHECKING:
    from sere.integrations.vllm.worker.state import Session


def serve(session: Session, host: str, port: int) -> Callable[[], None]:
    """Serve metrics until the worker ends.

    Args:
        session: The worker's session.
        host: Address to listen on; ``"0.0.0.0"`` for all of the machine's.
        port: Port to listen on.

    Returns:
        What closes the port; it may be called again.

    Raises:
        ConfigError: The port cannot be had; the text says what to do.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(Collector(lambda: [engine_stats.answer(session)]))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"metrics_port: {host}:{port} cannot be listened on ({error}); give a free port, or another "
            "metrics_host, or drop metrics_port"
        ) from error
    engine_stats.logger.info("sere: Prometheus metrics on http://%s:%d/metrics", host, port)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
