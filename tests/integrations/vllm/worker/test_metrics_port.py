"""The port for metrics: where it listens, and when it cannot be opened."""

from __future__ import annotations

import gc
import socket
import urllib.error
import urllib.request

import pytest

from sere.config import RerouteConfig
from sere.errors import ConfigError
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.worker.metrics_port import NOT_YET, MetricsPort
from tests.support.vllm.metrics import HOST, report_without_layers, scrape, serve_metrics
from tests.support.vllm.server import free_port

pytest.importorskip("prometheus_client", reason="comes with vLLM: make test-vllm")

pytestmark = pytest.mark.vllm


def test_only_this_machine_unless_asked() -> None:
    """By default the port is this machine's alone; ``metrics_host`` names another address."""
    port = free_port()
    assert PluginConfig(reroute=RerouteConfig(select_top_k=1)).metrics_host == HOST
    given = PluginConfig.from_mapping({"select_top_k": 1, "metrics_host": "0.0.0.0"})
    assert given.metrics_host == "0.0.0.0"
    close = serve_metrics(report_without_layers, "127.0.0.2", port)
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
    with socket.create_server((HOST, 0)) as other:
        number = other.getsockname()[1]
        expected = f"metrics_port: expected a free port, but {HOST}:{number} cannot be opened .*; choose"
        with pytest.raises(ConfigError, match=expected):
            MetricsPort(HOST, number)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a..b", 64 * "a"])
def test_host_of_another_machine(host: str) -> None:
    """An address that is not this machine's, or none at all, is refused in the same way."""
    with pytest.raises(ConfigError, match=r"9400 cannot be opened .*; choose another port or metrics_host"):
        MetricsPort(host, 9400)


def test_nobody_else_gets_a_port_before_it_is_read() -> None:
    """It is open from the start and says that there is nothing to read, as in a repeated warm-up."""
    number = free_port()
    port = MetricsPort(HOST, number)
    try:
        with pytest.raises(ConfigError, match="cannot be opened"):
            MetricsPort(HOST, number)
        assert _refusal(number) == (503, NOT_YET)
        port.serve(report_without_layers)
        assert "sere_steps_total" in scrape(number)
        port.pause()
        assert _refusal(number) == (503, NOT_YET)
    finally:
        port.close()
        port.close()
    with pytest.raises(urllib.error.URLError):
        scrape(number)


def test_port_of_an_engine_that_is_gone() -> None:
    """An engine that did not start leaves no open port in the process that started it."""
    number = free_port()
    opened = MetricsPort(HOST, number)
    del opened
    gc.collect()
    MetricsPort(HOST, number).close()


def _refusal(port: int) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        scrape(port)
    with refused.value as answer:
        return answer.code, answer.read().decode()
