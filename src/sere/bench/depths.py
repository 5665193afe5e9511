"""From the times of a model cut to two depths to the time of the complete model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from sere.bench.timing import Times, spread


@dataclass(frozen=True, slots=True)
class Depths:
    """Two depths of one model.

    Attributes:
        fewer: Layers of the shallower model.
        more: Layers of the deeper one.
        complete: Layers of the published model.
    """

    fewer: int
    more: int
    complete: int

    def line(self, at_fewer: float, at_more: float) -> tuple[float, float]:
        """Return the time that one more layer takes, and that of the complete model.

        The time is taken to be a constant (what an engine does in each step) and as much for each layer. A
        preset's output head is cut in the proportion of its layers, so that a layer's time has its share of
        the head, and the complete model has the head once.
        """
        per_layer = (at_more - at_fewer) / (self.more - self.fewer)
        return per_layer, at_more + (self.complete - self.more) * per_layer


def describe_depths(
    depths: Depths, mine: tuple[Times, Times], baseline: tuple[Times, Times]
) -> dict[str, Any] | None:
    """Return what two depths say about the complete model, for a record.

    Args:
        depths: The depths.
        mine: Times of a setting at the lower and the higher depth.
        baseline: Those of what it is compared with.

    Returns:
        ``layers``: those of the complete model; ``depths``; ``ms_per_layer`` and ``time_ms`` of the complete
        model, by medians; ``speedup_per_layer`` and ``speedup`` of the complete model, each with its spread
        over the rounds. None where the noise is larger than a layer's time.
    """
    per_layer, complete = depths.line(*(times.tpot_ms().p50 for times in mine))
    pairs = list(zip(_lines(depths, baseline), _lines(depths, mine), strict=False))
    slopes = [base[0] / own[0] for base, own in pairs if base[0] > 0 and own[0] > 0]
    if per_layer <= 0 or len(slopes) < len(pairs):
        return None
    return {
        "layers": depths.complete,
        "depths": [depths.fewer, depths.more],
        "ms_per_layer": per_layer,
        "time_ms": complete,
        "speedup_per_layer": asdict(spread(slopes)),
        "speedup": asdict(spread([base[1] / own[1] for base, own in pairs])),
    }


def _lines(depths: Depths, times: tuple[Times, Times]) -> Sequence[tuple[float, float]]:
    """Return slope and complete time round by round."""
    rounds = zip(*(one.blocks for one in times), strict=False)
    return [depths.line(median(fewer), median(more)) for fewer, more in rounds]
