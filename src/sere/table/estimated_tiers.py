"""Tiers that a table estimates itself, before anybody has measured any: the fewest experts for a loss."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from types import MappingProxyType
from typing import Any

from sere.reroute.constants import LIMIT_ROWS
from sere.table.artifact import SimilarityTable
from sere.table.expected_loss import Expected, expected_error
from sere.table.regime import why_no_loss
from sere.table.tiers import DEFAULT_TIER, Tier

ACCEPTED: Mapping[str, float] = MappingProxyType({"safe": 0.05, DEFAULT_TIER: 0.1, "fast": 0.18})
"""The expected error that each tier accepts. Right answers by expected error: docs/measurements.md."""

LEAST_GAIN = 0.01
"""τ of each tier. Right answers with and without: docs/measurements.md, "Right answers with a least gain"."""

OWN_TEXTS_SHARE = 0.7
"""How much of these errors is accepted on texts that the model wrote itself.

At the same experts, the expected error on them is 0.68 to 0.85 of that on given texts, on two small models:
docs/measurements.md, "Texts of the model's own".
"""

_ROWS = tuple(2**n for n in range(1, LIMIT_ROWS.bit_length()))


def estimated_tiers(table: SimilarityTable) -> dict[str, Tier]:
    """Return a tier for each accepted expected error; none if a table cannot estimate any.

    M at 2, 4, 8, ... rows is the fewest experts at which the mean expected error of the layers is within the
    accepted one (``OWN_TEXTS_SHARE`` of it, if the model wrote the texts itself). It never falls as rows
    grow, and for one row it is K. Layers with other numbers of experts or slots than most are taken by
    themselves. Slots whose gain is below ``LEAST_GAIN`` are given up where some can be skipped, which the
    expected error does not count.

    Args:
        table: The table, with factors and a routing sample.

    Source: docs/method.md section 4, "How many experts".
    """
    if why_no_loss(table) is not None:
        return {}
    assert table.routing is not None  # what `why_no_loss` says
    shapes: dict[tuple[int, int], list[int]] = {}
    for index in table.routing.ids:
        shapes.setdefault((table.layers[index].num_experts, table.identity.slots[index]), []).append(index)
    groups = sorted(shapes.items(), key=lambda item: len(item[1]), reverse=True)
    found = [_Group(table, layers, E, K) for (E, K), layers in groups]
    share, source = (1.0, "given texts")
    if table.own_texts:
        share, source = (OWN_TEXTS_SHARE, "texts that the model wrote itself")
    return {name: _tier(name, share * accepted, found, source) for name, accepted in ACCEPTED.items()}


class _Group:
    """Layers of the same numbers of experts and slots.

    Attributes:
        layers: Their decoder-layer indices.
        top_k: K.
        cells: Means over these layers for M = 1, 2, ... E, by rows of the step.
    """

    def __init__(self, table: SimilarityTable, layers: Sequence[int], num_experts: int, top_k: int) -> None:
        assert table.routing is not None
        self.layers, self.top_k = layers, top_k
        grid = range(1, num_experts + 1)
        by_layer = [
            expected_error(table.routing, table.layers[index], index, grid, _ROWS) for index in layers
        ]
        self.cells = {
            B: [Expected(*map(fmean, zip(*(cells[B, M] for cells in by_layer), strict=True))) for M in grid]
            for B in _ROWS
        }

    def points(self, accepted: float) -> tuple[tuple[int, int], ...]:
        """Return (rows, M) for an expected error of at most ``accepted``."""
        least = [self.top_k]
        for cells in self.cells.values():
            # The error falls as M grows.
            M = 1 + bisect_left(cells, -accepted, hi=len(cells) - 1, key=lambda cell: -cell.error)
            least.append(M)
        return tuple(zip((1, *_ROWS), accumulate(least, max), strict=True))


def _tier(name: str, accepted: float, groups: Sequence[_Group], source: str) -> Tier:
    first, *others = groups
    points = first.points(accepted)
    layers = {index: {"active_experts": group.points(accepted)} for group in others for index in group.layers}
    by_batch_size = {str(B): _described(first.cells[B][M - 1]) for B, M in points if B > 1}
    evidence: dict[str, Any] = {
        "goal": {"kind": "error", "value": round(accepted, 4)},
        "estimated_from": f"the routing of calibration tokens, of {source}",
        "by_batch_size": by_batch_size,
    }
    return Tier(name, points, layers=layers, min_gain=LEAST_GAIN, evidence=evidence)


def _described(cell: Expected) -> dict[str, float]:
    return {
        "error": round(cell.error, 4),
        "experts_before": round(cell.before, 2),
        "experts_after": round(cell.after, 2),
    }
