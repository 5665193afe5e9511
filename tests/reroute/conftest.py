"""The kernel's own source, run on the CPU, as one more backend."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

import pytest

from sere.reroute import backends


@pytest.fixture(scope="module")
def shim_backend() -> Iterator[None]:
    """Let ``backend="cuda"`` take CPU tensors, for which the shim runs the kernel."""
    record = backends.BackendRecord("cuda", "tests.reroute.shim.backend", ("cpu", "cuda"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "BACKENDS", MappingProxyType({**backends.BACKENDS, "cuda": record}))
        _forget()
        yield
    _forget()


def _forget() -> None:
    backends.select.cache_clear()
    backends.implementation.cache_clear()
