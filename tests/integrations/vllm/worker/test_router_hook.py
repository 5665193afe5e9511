"""Where re-routing enters vLLM: routers that it cannot follow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.worker import router_hook


def test_router_of_another_kind() -> None:
    """A router without the method that all of vLLM's have is refused by name."""
    with pytest.raises(UnsupportedEngine, match="its router SimpleNamespace has no _compute_routing"):
        router_hook.intercept(SimpleNamespace(), SimpleNamespace(name="layer"))  # type: ignore[arg-type]
