"""Metrics and their port: what is counted, where it listens, that it closes, when it cannot be had."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from sere.config import RerouteConfig
from sere.errors import ConfigError, UnsupportedEngine
from sere.integrations.vllm import engine_stats
from sere.integrations.vllm.options import Options
from sere.integrations.vllm.prometheus import Collector
from sere.integrations.vllm.worker import metrics_port
from sere.integrations.vllm.worker.equip import _after_warm_up
from sere.integrations.vllm.worker.step_counts import StepCounts

HOST = "127.0.0.1"


class Known:
    """A session without layers."""

    def __init__(self, **options: Any) -> None:
        self.config, self.layers = RerouteConfig(select_top_k=1), {}
        self.options = Options(reroute=self.config, **options)
        self.enabled, self.guard = True, SimpleNamespace(restart=lambda: None)
        self.counts, self.kernel = StepCounts(rerouted=3, prompts=1), None

    def expert_bytes(self) -> None:  # noqa: D102
        return None

    def reset_counters(self) -> None:  # noqa: D102
        self.counts.rerouted = 3


@pytest.fixture
def free() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def read(number: int) -> str:
    with urllib.request.urlopen(f"http://{HOST}:{number}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def test_port_closes_with_its_worker(free: int) -> None:
    """After a worker's warm-up its numbers are served until it shuts down, and then the port is free."""
    ended = []
    worker: Any = SimpleNamespace(
        rank=0, compile_or_warm_up_model=lambda: 7, shutdown=lambda: ended.append("worker")
    )
    _after_warm_up(worker, Known(metrics_port=free))  # type: ignore[arg-type]
    for _ in range(2):
        assert worker.compile_or_warm_up_model() == 7
        assert 'sere_steps_total{kind="rerouted"} 3.0' in read(free)
        worker.shutdown()
        with pytest.raises(urllib.error.URLError):
            read(free)
    assert "worker" in ended


def test_only_this_machine_unless_asked(free: int) -> None:
    """By default the port is this machine's alone; ``metrics_host`` names another address."""
    assert Options(reroute=RerouteConfig(select_top_k=1)).metrics_host == HOST
    given = Options.from_mapping({"select_top_k": 1, "metrics_host": "0.0.0.0"})
    assert given.metrics_host == "0.0.0.0"
    close = metrics_port.serve(Known(), "127.0.0.2", free)  # type: ignore[arg-type]
    try:
        with pytest.raises(urllib.error.URLError):
            read(free)
    finally:
        close()
    for wrong in ("", 1):
        with pytest.raises(ConfigError, match="metrics_host: expected an address to listen on"):
            Options.from_mapping({"select_top_k": 1, "metrics_host": wrong})


def test_port_that_is_taken() -> None:
    """A port that somebody has is refused with what to do."""
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        number = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"metrics_port: {HOST}:{number} cannot be .*give a free port"):
            metrics_port.serve(Known(), HOST, number)  # type: ignore[arg-type]


def scraped(answers: list[dict[str, Any]]) -> str:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(Collector(lambda: answers))
    return generate_latest(registry).decode()


def test_metrics_are_sums() -> None:
    """Prometheus gets what the layers of all pipeline stages counted, as counters that only grow."""
    stages = [
        {"enabled": True, "settings": {}, "steps": StepCounts(rerouted=4, prompts=1).to_mapping(),
         "top_k": 4, "num_experts": 16, "kernel": None, "expert_bytes": None,
         "layers": [{"index": index, "name": f"layer {index}", "counters": [4, 8, 40, 20, 32, 12, 6]}]}
        for index in (1, 0)
    ]  # fmt: skip
    text = scraped(stages)
    for name, value in (
        ("steps", 4), ("rows", 8), ("distinct_before", 40), ("distinct_after", 20), ("slots", 32),
        ("slots_rerouted", 12), ("critical", 6),
    ):  # fmt: skip
        assert f"# TYPE sere_layer_{name}_total counter" in text
        for layer in (0, 1):
            assert f'sere_layer_{name}_total{{layer="{layer}"}} {value}.0' in text
    assert 'sere_steps_total{kind="rerouted"} 4.0' in text
    assert "sere_enabled 1.0" in text


def test_no_answer() -> None:
    """Without a worker's answer there are neither statistics nor metrics."""
    for read in (engine_stats.merged, scraped):
        with pytest.raises(UnsupportedEngine, match="no worker answered"):
            read([])
