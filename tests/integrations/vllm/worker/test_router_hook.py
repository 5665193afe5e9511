"""Where re-routing enters vLLM: layers' names, and routers that it cannot follow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.worker import router_hook


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.experts", "language_model.model.layers.3.block.experts"]
)
def test_layer_index(name: str) -> None:
    """The index is read from the layer's name; a name without one is refused."""
    assert router_hook.layer_index(name) == 3
    with pytest.raises(UnsupportedEngine, match="expected a decoder-layer index"):
        router_hook.layer_index("experts")


def test_router_of_another_kind() -> None:
    """A router without the method that all of vLLM's have is refused by name."""
    with pytest.raises(UnsupportedEngine, match="its router SimpleNamespace has no _compute_routing"):
        router_hook.intercept(SimpleNamespace(), SimpleNamespace(name="layer"))  # type: ignore[arg-type]
