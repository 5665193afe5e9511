"""One MoE layer of an engine: which decoder layer it is."""

from __future__ import annotations

import pytest

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.worker.layer import layer_index


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.experts", "language_model.model.layers.3.block.experts"]
)
def test_layer_index(name: str) -> None:
    """The index is read from the layer's name; a name without one is refused."""
    assert layer_index(name) == 3
    with pytest.raises(UnsupportedEngine, match="expected a decoder-layer index"):
        layer_index("experts")
