"""When the ``cuda`` backend is chosen, and what is said where it cannot run; without a device."""

from __future__ import annotations

import builtins
import logging
from typing import Any

import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import BackendUnavailable, InputError
from sere.reroute import prepare as prepare_module
from sere.reroute import prepare_layer, select
from sere.reroute.backends import cuda, registry, triton
from sere.reroute.backends.cuda import device
from sere.reroute.backends.cuda.launch import MOST_EXPERTS, MOST_SLOTS_PER_ROW
from sere.reroute.batch import USUAL_DTYPES, StepDtypes
from sere.similarity.layer import LayerSimilarity
from tests.support.batches import similarity_matrix
from tests.support.cuda_host import load, pretend, pretend_core, pretend_device
from tests.support.packages import pretend_packages

pytestmark = pytest.mark.usefixtures("forgetful")

without_device = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


def test_without_cuda_core(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The automatic choice is torch with one log line, the named backend raises with the install line."""
    pretend_packages(monkeypatch, missing=("cuda.core", "triton"))
    with caplog.at_level(logging.WARNING, "sere"):
        assert select("auto", "cuda", 64) == "torch"
        assert select("auto", "cuda", 128) == "torch"
    (record,) = caplog.records
    assert "with the torch backend instead of cuda: the package cuda.core is not installed" in record.message
    assert "; not triton either: the package triton is not installed" in record.message
    with pytest.raises(BackendUnavailable, match=r"'cuda' cannot run here: .* pip install '\.\[cuda\]'"):
        select("cuda", "cuda")


@without_device
def test_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With cuda-core but no device the named backend says that PyTorch sees none."""
    pretend_packages(monkeypatch)
    with pytest.raises(BackendUnavailable, match="cannot run here: PyTorch sees no CUDA device"):
        select("cuda", "cuda")


def test_a_device_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the try ends well, the automatic choice for CUDA tensors is the kernel."""
    pretend(monkeypatch, reason=None)
    assert select("auto", "cuda") == "cuda"
    assert select("cuda", "cuda", MOST_EXPERTS) == "cuda"


def test_triton_instead_of_cuda_core(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without cuda-core, a device that runs Triton's programs gets them; one log line names the route."""
    pretend_packages(monkeypatch, missing=("cuda.core",))
    monkeypatch.setattr(triton, "why_not", lambda *_: None)
    with caplog.at_level(logging.WARNING, "sere"):
        assert select("auto", "cuda", 128) == "triton"
        assert registry.on_device("triton", "auto", torch.device("cuda", 1), 128) == "triton"
        assert select("auto", "cuda", 2048) == "torch"
    first, second = (record.message for record in caplog.records)
    assert "with the triton backend instead of cuda: the package cuda.core is not installed" in first
    assert "with the torch backend instead of cuda: it takes at most 1024 experts" in second
    assert select("triton", "cuda", 128) == "triton"


def test_a_second_device_without_cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel fails on one device only, that device tries Triton's programs next."""
    pretend(monkeypatch, reason=None)
    assert select("auto", "cuda", 128) == "cuda"
    monkeypatch.setattr(cuda, "why_not", lambda *_: "refused")
    pretend_packages(monkeypatch)
    monkeypatch.setattr(triton, "why_not", lambda index, _: None if index == 1 else "refused, too")
    assert registry.on_device("cuda", "auto", torch.device("cuda", 1), 128) == "triton"
    assert registry.on_device("cuda", "auto", torch.device("cuda", 2), 128) == "torch"


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What the try reports is what the log line and the error say."""
    pretend(monkeypatch, reason="DynamicLibNotFoundError: libnvrtc.so.13")
    with caplog.at_level(logging.WARNING, "sere"):
        assert select("auto", "cuda") == "torch"
    assert "instead of cuda: DynamicLibNotFoundError: libnvrtc.so.13" in caplog.text
    with pytest.raises(BackendUnavailable, match="libnvrtc"):
        select("cuda", "cuda")


def test_more_experts_than_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of 1025 experts falls back, or raises where the backend was named."""
    pretend(monkeypatch, reason=None)
    assert registry.BACKENDS["cuda"].most_experts == MOST_EXPERTS
    assert select("auto", "cuda", MOST_EXPERTS + 1) == "torch"
    with pytest.raises(BackendUnavailable, match="at most 1024 experts per layer, this one has 1025"):
        select("cuda", "cuda", MOST_EXPERTS + 1)
    layer = LayerSimilarity(torch.ones(1025, 1025))
    with pytest.raises(BackendUnavailable, match="it needs cuda tensors, got cpu tensors"):
        prepare_layer(layer, RerouteConfig(select_top_k=1, backend="cuda"))


def test_more_slots_than_a_program_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 33 slots are known when a layer is prepared, so the choice falls back there, or raises."""
    pretend(monkeypatch, reason=None)
    assert {registry.BACKENDS[name].most_slots for name in ("cuda", "triton")} == {MOST_SLOTS_PER_ROW}
    assert select("auto", "cuda", 128, MOST_SLOTS_PER_ROW) == "cuda"
    assert select("auto", "cuda", 128, MOST_SLOTS_PER_ROW + 1) == "torch"
    assert registry.on_device("cuda", "auto", torch.device("cuda", 1), 128, 33) == "torch"
    reason = registry.why_not_fastest("torch", torch.device("cuda", 1), 128, 33)
    assert reason == "it takes at most 32 slots per row, this layer has 33"
    assert registry.why_not_fastest("cuda", torch.device("cuda", 1), 128, 33) is None
    with pytest.raises(BackendUnavailable, match="at most 32 slots per row, this layer has 33"):
        select("triton", "cuda", 128, 33)


def test_why_not_reports_any_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while the kernel is tried becomes one line of reason, never a traceback."""

    def fail(*_: object) -> None:
        raise OSError("the driver\n  refused")

    pretend_device(monkeypatch)
    monkeypatch.setattr(device, "_try", fail)
    assert device.why_not() == "with int32 ids and float32 weights, OSError: the driver refused"


def test_each_device_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device is compiled for and tried once, and its failure concerns that device alone."""
    tried: list[int] = []

    def attempt(_: StepDtypes, where: torch.device) -> None:
        tried.append(where.index)
        if where.index == 4:
            raise OSError("refused")

    pretend_device(monkeypatch)
    pretend_packages(monkeypatch, missing=("triton",))
    monkeypatch.setattr(device, "_try", attempt)
    for _ in range(2):
        assert select("auto", "cuda") == "cuda"
        assert registry.on_device("cuda", "auto", torch.device("cuda", 5)) == "cuda"
        assert registry.on_device("cuda", "auto", torch.device("cuda", 4)) == "torch"
    assert tried == [3, 5, 4]
    with pytest.raises(BackendUnavailable, match=r"'cuda' cannot run on cuda:4: with .*, OSError: refused"):
        registry.on_device("cuda", "cuda", torch.device("cuda", 4))
    assert registry.on_device("torch", "auto", torch.device("cuda", 4)) == "torch"


def test_dtypes_that_a_device_fails_with(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer of such steps alone gets another backend, when it is prepared; a named one raises."""

    def attempt(dtypes: StepDtypes, where: torch.device) -> None:
        load(dtypes, where)
        if dtypes.weights is torch.bfloat16:
            raise RuntimeError("wrong ids")

    pretend_device(monkeypatch)
    pretend_core(monkeypatch)
    pretend_packages(monkeypatch, missing=("triton",))
    monkeypatch.setattr(device, "_try", attempt)
    narrow = (*USUAL_DTYPES, StepDtypes(torch.int64, torch.bfloat16))
    where, reason = torch.device("cuda", 3), "with int64 ids and bfloat16 weights, RuntimeError: wrong ids"
    assert select("auto", "cuda", 8, 4) == "cuda"
    with caplog.at_level(logging.WARNING, "sere"):
        assert select("auto", "cuda", 8, 4, narrow) == "torch"
    assert f"the torch backend instead of cuda: {reason}" in caplog.text
    assert registry.on_device("cuda", "auto", where, 8, 4) == "cuda"
    assert registry.on_device("cuda", "auto", where, 8, 4, narrow) == "torch"
    assert registry.why_not_fastest("torch", where, 8, 4, narrow) == reason
    with pytest.raises(BackendUnavailable, match=f"'cuda' cannot run here: {reason}"):
        select("cuda", "cuda", 8, 4, narrow)
    with pytest.raises(BackendUnavailable, match=f"'cuda' cannot run on cuda:3: {reason}"):
        registry.on_device("cuda", "cuda", where, 8, 4, narrow)
    # What failed in a trial is not there for a step.
    with pytest.raises(BackendUnavailable, match="cannot run steps with int64 ids and bfloat16 weights"):
        device.kernel_of(3, "reroute_int64_bfloat16")


@pytest.mark.parametrize("asked", [(torch.int16, torch.float32), (torch.int32, torch.int32)])
def test_dtypes_that_no_step_has(asked: tuple[torch.dtype, torch.dtype]) -> None:
    """They are refused when a layer is prepared, as in a step."""
    layer = LayerSimilarity(similarity_matrix(8, 0))
    with pytest.raises(InputError, match=r"topk_(ids|weights): expected .*, got torch.int(16|32)"):
        prepare_layer(layer, RerouteConfig(active_experts=0), dtypes=[StepDtypes(*asked)])


def test_a_layer_makes_its_own_device_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparing asks for the very device that its tensors are on, and takes the backend that it is told."""
    asked: list[Any] = []

    def on_device(*arguments: object) -> str:
        asked.append(arguments)
        return "reference"

    monkeypatch.setattr(prepare_module, "on_device", on_device)
    config = RerouteConfig(active_experts=8, backend="torch")
    layer, wide = LayerSimilarity(similarity_matrix(8, 0)), (StepDtypes(torch.int64, torch.float32),)
    made = prepare_layer(layer, config, top_k=4, dtypes=wide)
    assert asked == [("torch", "torch", torch.device("cpu"), 8, 4, wide)]
    assert made.backend == "reference"


def test_importing_the_backend_loads_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module itself imports where cuda-core is missing: the reason comes when it is asked for."""
    import importlib

    real_import = builtins.__import__

    def without_cuda(name: str, *rest: Any) -> Any:
        if name == "cuda" or name.startswith("cuda."):
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_cuda)
    importlib.reload(importlib.import_module("sere.reroute.backends.cuda"))
