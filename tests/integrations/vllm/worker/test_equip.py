"""What a worker is given, and when."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import ConfigError, TableMismatch
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.start import tables
from sere.integrations.vllm.start.checks import check_start
from sere.integrations.vllm.worker.equip import _around_loading, _around_warm_up, _metrics_port, equip
from sere.integrations.vllm.worker.flat_experts import FlatKernels
from sere.integrations.vllm.worker.reporter import Reporter
from sere.table.tiers import Tier
from tests.support.vllm.metrics import report_without_layers, scrape
from tests.support.vllm.server import free_port
from tests.support.vllm.standins import ALL


@pytest.mark.vllm
def test_port_of_a_worker() -> None:
    """The second engine's numbers are on the second port, from the warm-up until the worker shuts down."""
    pytest.importorskip("prometheus_client", reason="comes with vLLM: make test-vllm")
    ended, port, seen = [], free_port(), []
    state = SimpleNamespace(
        plugin_config=PluginConfig(reroute=RerouteConfig(select_top_k=1), metrics_port=port - 1),
        data_parallel_rank=1,
        guard=SimpleNamespace(restart=lambda: None), reset_counters=lambda: None,
        flat=FlatKernels(why_not="no kernel"),
        report=lambda: report_without_layers(rerouted=3, prompts=1),
    )  # fmt: skip
    state.lock, state.budgets = threading.RLock(), None

    def warm_up() -> int:
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            scrape(port)
        refused.value.close()
        seen.append("nothing to read")
        return 7

    worker: Any = SimpleNamespace(
        rank=0, compile_or_warm_up_model=warm_up, shutdown=lambda: ended.append("worker"),
        sere_steps=SimpleNamespace(reporter=Reporter(state)),  # type: ignore[arg-type]
    )  # fmt: skip
    _around_warm_up(worker, state, _metrics_port(worker, state))  # type: ignore[arg-type]
    # A second time where ranks come and go.
    for _ in range(2):
        assert worker.compile_or_warm_up_model() == 7
        assert 'sere_steps_total{kind="rerouted"} 3.0' in scrape(port)
    worker.shutdown()
    with pytest.raises(urllib.error.URLError):
        scrape(port)
    assert (ended, seen) == (["worker"], 2 * ["nothing to read"])


@pytest.mark.parametrize(("flat", "steps"), [
    (FlatKernels(), ["dummy", "reset"]), (FlatKernels("on"), ["reset"]), (FlatKernels(why_not=""), ["reset"]),
])  # fmt: skip
def test_experts_are_timed_before_the_first_request(flat: FlatKernels, steps: list[str]) -> None:
    """A warm-up without a step is followed by one, which is not counted, if there is something to time."""
    seen: list[str] = []
    state: Any = SimpleNamespace(
        flat=flat, layers={0: None}, guard=SimpleNamespace(restart=lambda: None),
        reset_counters=lambda: seen.append("reset"), lock=threading.RLock(),
    )  # fmt: skip
    worker: Any = SimpleNamespace(
        compile_or_warm_up_model=lambda: 7, execute_dummy_batch=lambda: seen.append("dummy"),
        sere_steps=SimpleNamespace(reporter=Reporter(state)),
    )  # fmt: skip
    _around_warm_up(worker, state, None)
    assert worker.compile_or_warm_up_model() == 7
    assert seen == steps


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
        add=None, speaks=False, rules=SimpleNamespace(allowed=ALL), shapes=[], layers={},
        prepare=lambda *given: seen.append(given),
    )  # fmt: skip
    _around_loading(worker, state, Path("none"))
    worker.load_model()
    assert seen == [(torch.device("meta"), 8)]


def engine_of(table: Any, path: Path, **settings: Any) -> Any:
    """Return what vLLM says of an engine of the model that a table was made for."""
    values = table.identity.architecture
    text = SimpleNamespace(
        model_type=values["model_type"], hidden_size=values["hidden_size"],
        num_hidden_layers=values["layers"], moe_intermediate_size=values["expert_width"],
    )  # fmt: skip
    return SimpleNamespace(
        additional_config={"sere": {"table": str(path), "allow_untested": True, "log_seconds": 0} | settings},
        device_config=SimpleNamespace(device_type="cpu"),
        parallel_config=SimpleNamespace(data_parallel_size=2),
        model_config=SimpleNamespace(model="somewhere", hf_text_config=text, hf_config=text),
    )


def test_a_worker_with_another_table_stops_the_start(any_table: Any, tmp_path: Path) -> None:
    """The front end says in the settings what the table is; a worker that finds another file there stops."""
    path = tmp_path / "similarity.sere"
    any_table.save(path)
    config = engine_of(any_table, path)
    check_start(config)
    assert config.additional_config["sere"]["table_digest"] == tables.digest(any_table)
    any_table.with_tiers({"fast": Tier("fast", 3)}).save(path)
    with pytest.raises(TableMismatch, match="expected the table that the engine was started with"):
        equip(SimpleNamespace(vllm_config=config), config.additional_config["sere"])


def test_a_taken_port_stops_before_the_model_is_loaded(any_table: Any, tmp_path: Path) -> None:
    """Rank 0 of each data-parallel engine tries its own port when the worker is made."""
    any_table.save(tmp_path / "similarity.sere")
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        config = engine_of(any_table, tmp_path / "similarity.sere", metrics_port=number - 1)
        vars(config.parallel_config).update(data_parallel_rank=1, rank=0, tensor_parallel_size=1)
        with pytest.raises(ConfigError, match=f"expected a free port, but 127.0.0.1:{number} cannot be open"):
            equip(SimpleNamespace(vllm_config=config, rank=0), config.additional_config["sere"])
