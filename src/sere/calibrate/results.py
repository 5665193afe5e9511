"""What a calibration measured: of one layer, and of all."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sere.calibrate.routing import LayerRouting
from sere.similarity import LayerSimilarity


class LayerResult(NamedTuple):
    """What was measured in one decoder layer.

    Attributes:
        similarities: By metric; none for a dense layer.
        routing: How its router chose on the sampled tokens, or None.
        halves: The nearest neighbors by two halves of the tokens, by metric; see `Halves`.
    """

    similarities: dict[str, LayerSimilarity]
    routing: LayerRouting | None
    halves: dict[str, Tensor]


class Results:
    """What was measured in all layers.

    Attributes:
        similarities: By metric and decoder-layer index.
        routing: How routers chose on the sampled tokens, by decoder-layer index.
        halves: The nearest neighbors by two halves of the tokens, by metric and decoder-layer index.
    """

    def __init__(self, metrics: tuple[str, ...]) -> None:
        """Begin with nothing for these metrics."""
        self.similarities: dict[str, dict[int, LayerSimilarity]] = {name: {} for name in metrics}
        self.routing: dict[int, LayerRouting] = {}
        self.halves: dict[str, dict[int, Tensor]] = {name: {} for name in metrics}

    def add(self, index: int, found: LayerResult) -> None:
        """Add what was measured in decoder layer ``index``."""
        for name, similarity in found.similarities.items():
            self.similarities[name][index] = similarity
        for name, pair in found.halves.items():
            self.halves[name][index] = pair
        if found.routing is not None:
            self.routing[index] = found.routing
