"""A pytest plug-in: the cuda backend through NVRTC and cuda-core themselves, with a driver of the CPU.

``python -m pytest -p tests.support.shim.driver …``, in a process of its own: a driver stays until its
process ends. There the backend ``shim`` launches as the cuda backend does, on the one device that PyTorch
seems to see.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from sere.reroute.backends.cuda import device
from sere.reroute.backends.cuda.launch import Launch

from . import backend as shim
from .build import COMPILER, NO_COMPILER, build

GPU = torch.device("cuda", 0)
# Whoever asks for libcuda.so.1 later in the process gets the library that has this name.
FLAGS = ("-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
HAS_CUDA_CORE = find_spec("cuda") is not None and find_spec("cuda.core") is not None
NO_CUDA_CORE = "cuda-core is not installed: in a clone of sere's repository, run: pip install '.[cuda]'"


class Config(ctypes.Structure):
    """What the driver is told of a launch beside its arguments: CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


class Driver:
    """The driver of this process.

    Attributes:
        launches: How many launches there were.
        loads: Whether the driver takes machine code; 0 or 1.
        runs: Whether a launch runs the kernel; 0 or 1.
        config: The last launch's.
        stream: The address of PyTorch's current stream.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(str(build("driver.cpp", *FLAGS)))
        self.launches = ctypes.c_int.in_dll(library, "shim_launches")
        self.loads = ctypes.c_int.in_dll(library, "shim_loads")
        self.runs = ctypes.c_int.in_dll(library, "shim_runs")
        self.config = Config.in_dll(library, "shim_config")
        self.stream = 0


def why_not() -> str | None:
    """Return why there can be no such driver here, or None."""
    if COMPILER is None:
        return NO_COMPILER
    return None if HAS_CUDA_CORE else NO_CUDA_CORE


def put_in_place(patch: pytest.MonkeyPatch) -> Driver:
    """Return the driver, in place, with a PyTorch that believes in its device until the patch is undone."""
    driver = Driver()
    put, attempt = device.launch, device._try

    def launch(call: Launch, _: torch.device) -> None:
        put(call, GPU)

    patch.setattr(torch.cuda, "current_device", lambda: GPU.index)
    patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    patch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    patch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: driver.stream, raising=False)
    patch.setattr(device, "launch", launch)
    patch.setattr(device, "_try", lambda dtypes, _: attempt(dtypes, torch.device("cpu")))
    patch.setattr(shim, "launch", launch)
    return driver


@pytest.fixture(scope="session", autouse=True)
def driver() -> Iterator[Driver]:
    """The driver of this process, for all of its tests."""
    with pytest.MonkeyPatch.context() as patch:
        yield put_in_place(patch)
