"""What a worker is given, and when."""

from __future__ import annotations

import urllib.error
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sere.config import RerouteConfig
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.worker.equip import _after_warm_up, _around_loading
from tests.support.vllm.metrics import report_without_layers, scrape
from tests.support.vllm.server import free_port


@pytest.mark.vllm
def test_port_closes_with_its_worker() -> None:
    """After warm-up the second engine's numbers are served on the second port, until it shuts down."""
    pytest.importorskip("prometheus_client", reason="comes with vLLM: make test-vllm")
    ended, port = [], free_port()
    state = SimpleNamespace(
        plugin_config=PluginConfig(reroute=RerouteConfig(select_top_k=1), metrics_port=port - 1),
        data_parallel_rank=1,
        guard=SimpleNamespace(restart=lambda: None), reset_counters=lambda: None,
        report=lambda: report_without_layers(rerouted=3, prompts=1),
    )  # fmt: skip
    worker: Any = SimpleNamespace(
        rank=0, compile_or_warm_up_model=lambda: 7, shutdown=lambda: ended.append("worker")
    )
    _after_warm_up(worker, state)  # type: ignore[arg-type]
    for _ in range(2):
        assert worker.compile_or_warm_up_model() == 7
        assert 'sere_steps_total{kind="rerouted"} 3.0' in scrape(port)
        worker.shutdown()
        with pytest.raises(urllib.error.URLError):
            scrape(port)
    assert "worker" in ended


def test_tensors_are_made_where_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is the model runner's: before 0.23 the worker of a CPU has none."""
    for name in ("report_layers", "without_table"):
        monkeypatch.setattr(f"sere.integrations.vllm.worker.equip.{name}", lambda _: nullcontext())
    runner = SimpleNamespace(
        device=torch.device("meta"), prepare_inputs=len, _dummy_run=len, execute_model=len
    )
    worker = SimpleNamespace(
        device=None, rank=1, model_runner=runner, load_model=lambda: None,
        vllm_config=SimpleNamespace(
            compilation_config=SimpleNamespace(),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=8),
        ),
    )  # fmt: skip
    seen: list[Any] = []
    state: Any = SimpleNamespace(
        add=None, speaks=False, rules=SimpleNamespace(tiers=()), prepare=lambda *given: seen.append(given)
    )
    _around_loading(worker, state, Path("none"))
    worker.load_model()
    assert seen == [(torch.device("meta"), 8)]
