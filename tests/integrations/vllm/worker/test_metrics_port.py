"""The port for metrics: where it listens, and when it cannot be opened."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Callable

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


def _serve(host: str, port: int) -> None:
    metrics_port.serve_metrics(report_without_layers, host, port)


@pytest.mark.parametrize("act", [metrics_port.check_port, _serve])
def test_port_that_is_taken(act: Callable[[str, int], None]) -> None:
    """A port that somebody has is refused with what to do, before a model is loaded and after."""
    with socket.create_server((HOST, 0)) as other:
        number = other.getsockname()[1]
        expected = f"metrics_port: expected a free port, but {HOST}:{number} cannot be opened .*; choose"
        with pytest.raises(ConfigError, match=expected):
            act(HOST, number)


@pytest.mark.parametrize("act", [metrics_port.check_port, _serve])
def test_host_of_another_machine(act: Callable[[str, int], None]) -> None:
    """An address that is not this machine's is refused in the same way."""
    with pytest.raises(
        ConfigError, match=r"192\.0\.2\.1:9400 cannot be opened .*; choose another port or metr"
    ):
        act("192.0.2.1", 9400)


def test_checked_port_is_free_again() -> None:
    """What was checked can be opened at once."""
    port = free_port()
    metrics_port.check_port(HOST, port)
    close = metrics_port.serve_metrics(report_without_layers, HOST, port)
    scrape(port)
    close()
