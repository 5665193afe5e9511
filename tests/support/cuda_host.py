"""A CUDA device and cuda-core that are not there: what the ``cuda`` backend's host code asks of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sere.reroute import select
from sere.reroute.backends import cuda, registry
from sere.reroute.backends.cuda import device
from sere.reroute.backends.cuda.launch import entry_of
from sere.reroute.backends.triton import launch
from sere.reroute.batch import StepDtypes
from tests.support.packages import pretend_packages


def forget() -> None:
    """Forget what the backends have found out about this machine."""
    select.cache_clear()
    registry.warn_once.forget()
    launch.tried.cache_clear()
    forget_kernels()
    device.stream_of.cache_clear()
    device._shape_of.cache_clear()
    device._core.cache_clear()


def forget_kernels() -> None:
    """Forget which entries are loaded, and which passed their trial."""
    device.tried.cache_clear()
    device._kernels.clear()


def pretend(monkeypatch: pytest.MonkeyPatch, *, reason: str | None) -> None:
    """Let cuda-core be installed and the try on the device end with ``reason``."""
    pretend_packages(monkeypatch, missing=("triton",))
    monkeypatch.setattr(cuda, "why_not", lambda *_: reason)


def pretend_device(monkeypatch: pytest.MonkeyPatch, *, capturing: bool = False) -> None:
    """Let PyTorch see CUDA devices, of which number 3 is the current one."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, index))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 70 + index, raising=False)


def load(dtypes: StepDtypes, where: torch.device) -> None:
    """Load what the trial of a device that is not there would launch."""
    device.kernel_of(where.index, entry_of(*dtypes))


def pretend_core(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[Any]:
    """Put another cuda-core in place, with which each trial ends well; return what it is told to do."""
    put: list[Any] = []
    core = SimpleNamespace(
        Device=lambda index: SimpleNamespace(set_current=lambda: put.append(index)),
        ObjectCode=SimpleNamespace(from_cubin=lambda code: SimpleNamespace(get_kernel=lambda e: (code, e))),
        LaunchConfig=lambda grid, block: (grid, block),
        Stream=SimpleNamespace(from_handle=lambda handle: ["stream", handle]),
        launch=lambda *arguments: put.append(arguments),
    )
    vars(core).update(changes)
    monkeypatch.setattr(device, "_core", lambda: core)
    monkeypatch.setattr(device, "cubin", lambda arch, entry: f"{entry} for {arch}")
    monkeypatch.setattr(device, "_try", load)
    return put
