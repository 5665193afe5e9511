"""The port for metrics: where it listens, and when it cannot be opened."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest

from sere.config import RerouteConfig
from sere.errors import ConfigError
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.worker import metrics_port
from tests.support.vllm.metrics import HOST, report_without_layers, scrape
from tests.support.vllm.server import free_port

pytest.importorskip("prometheus_client", reason="comes with vLLM: make test-vllm")

pytestmark = pytest.mark.vllm


def test_only_this_machine_unless_asked() -> None:
    """By default the port is this machine's alone; ``metrics_host`` names another address."""
    port = free_port()
    assert PluginConfig(reroute=RerouteConfig(select_top_k=1)).metrics_host == HOST
    given = PluginConfig.from_mapping({"select_top_k": 1, "metrics_host": "0.0.0.0"})
    assert given.metrics_host == "0.0.0.0"
    close = metrics_port.serve_metrics(report_without_layers, "127.0.0.2", port)
    try:
        with pytest.raises(urllib.error.URLError):
            scrape(port)
    finally:
        close()


@pytest.mark.parametrize("host", ["", 1])
def test_refused_hosts(host: object) -> None:
    """What is not an address is refused."""
    with pytest.raises(ConfigError, match="metrics_host: expected an address to listen on"):
        PluginConfig.from_mapping({"select_top_k": 1, "metrics_host": host})


def test_port_that_is_taken() -> None:
    """A port that somebody has is refused with what to do."""
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        number = other.getsockname()[1]
        with pytest.raises(
            ConfigError,
            match=f"metrics_port: expected a free port, but {HOST}:{number} cannot be opened .*; choose",
        ):
            metrics_port.serve_metrics(report_without_layers, HOST, number)
