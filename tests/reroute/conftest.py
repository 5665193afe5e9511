"""Kernels run on the CPU, as more backends: the CUDA one's own source, and Triton's programs, interpreted."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

import pytest

from sere.reroute.backends import registry
from tests.support.batches import INTERPRETED
from tests.support.cuda_host import forget


@pytest.fixture(scope="module")
def shim_backend() -> Iterator[None]:
    """Let ``backend="cuda"`` take CPU tensors, for which the shim runs the kernel, and ``"triton"``."""
    records = {"cuda": registry.BackendRecord("cuda", "tests.support.shim.backend", ("cpu", "cuda"))}
    if INTERPRETED:
        module = registry.BACKENDS["triton"].module
        records["triton"] = registry.BackendRecord("triton", module, ("cpu",), most_experts=1024)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "BACKENDS", MappingProxyType({**registry.BACKENDS, **records}))
        _forget()
        yield
    _forget()


def _forget() -> None:
    registry.select.cache_clear()
    registry.implementation.cache_clear()


@pytest.fixture
def forgetful() -> Iterator[None]:
    """A process that has not looked for a CUDA device yet, and forgets what it finds."""
    forget()
    yield
    forget()
