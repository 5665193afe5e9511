"""How much a layer's error costs: measured by moving one layer at a time, on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, variance
from typing import Any

from sere.eval.statistics.by_prompt import mean_and_error
from sere.tune.measure import Meter
from sere.tune.plans import ByLayer
from sere.tune.simulate import Simulated

# Of more layers, neighbors move together.
_MOST_GROUPS = 24
# A moved layer reads this share of its M.
_MOVE = 0.75
# No layer counts less than this share of the mean: its loss is too small to be told from none.
_LEAST = 0.05


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """What a unit of a layer's squared simulated error costs, relative to the other layers.

    Attributes:
        by_layer: By decoder-layer index, with a mean of 1; measured values are drawn towards the mean as far
            as they may be noise.
        groups: The layers that moved together.
        measured: By group: the value as measured.
        errors: By group: its standard error.
        at: M by the rows that were measured.
    """

    by_layer: Mapping[int, float]
    groups: Sequence[Sequence[int]]
    measured: Sequence[float]
    errors: Sequence[float]
    at: Mapping[int, int]

    def describe(self) -> dict[str, Any]:
        """Return them as JSON-ready values."""
        return {
            "at": {str(rows): M for rows, M in self.at.items()},
            "layers": [
                {
                    "layers": list(group),
                    "sensitivity": round(self.by_layer[group[0]], 4),
                    "measured": round(value, 4),
                    "standard_error": round(error, 4),
                }
                for group, value, error in zip(self.groups, self.measured, self.errors, strict=True)
            ],
        }


def runs_of(layers: int, batch_sizes: int, runs: int) -> int:
    """Return how many measurements sensitivities take.

    Args:
        layers: How many layers there are.
        batch_sizes: How many batch sizes could be measured.
        runs: Most measurements.
    """
    groups = min(layers, _MOST_GROUPS, runs)
    return groups * min(batch_sizes, max(1, runs // groups))


def measure_sensitivities(
    meter: Meter, cells: ByLayer, at: Mapping[int, int], *, runs: int
) -> Sensitivities | None:
    """Measure what each layer's error costs around a plan in which all layers read the same number.

    One group of layers at a time reads a quarter less, or a third more where there is no less. What that
    costs is counted in the mean root of the tokens' divergence, which a few tokens do not decide as they
    decide the mean divergence; relative to the root before, so that batch sizes can be pooled; per unit of
    the layer's squared simulated error.

    Args:
        meter: Measures on the tuning prompts.
        cells: What the table says.
        at: The plan: M by rows.
        runs: Most measurements.

    Returns:
        The sensitivities; None if they cannot be told, because nothing is re-routed there.
    """
    layers = list(next(iter(cells.values())))
    groups = _groups(layers, min(_MOST_GROUPS, runs))
    chosen = {B: at[B] for B in _some(sorted(at), max(1, runs // len(groups)))}
    found = [_cost(meter, cells, chosen, group) for group in groups]
    told = [one for one in found if one is not None]
    if len(told) < len(groups) or fmean(value for value, _ in told) <= 0:
        return None
    mean = fmean(value for value, _ in told)
    measured, errors = [value / mean for value, _ in told], [error / mean for _, error in told]
    drawn = _drawn(measured, errors)
    by_layer = {index: value for group, value in zip(groups, drawn, strict=True) for index in group}
    return Sensitivities(dict(sorted(by_layer.items())), groups, measured, errors, chosen)


def _cost(
    meter: Meter, cells: ByLayer, at: Mapping[int, int], group: Sequence[int]
) -> tuple[float, float] | None:
    """Return the mean relative rise of the root divergence per unit of squared error, and its error."""
    sums: list[float] | None = None
    tokens: Sequence[int] = ()
    count = 0
    for B, M in at.items():
        layers = list(cells[B])
        other = _moved(M, cells[B][layers[0]])
        rise = sum(cells[B][index][other].error ** 2 - cells[B][index][M].error ** 2 for index in group)
        base = meter.loss("tuning", B, M)
        if rise == 0 or sum(base.roots) <= 0:
            continue
        moved = meter.loss("tuning", B, tuple(other if index in group else M for index in layers))
        unit = rise * sum(base.roots) / sum(base.tokens)
        differences = [(new - old) / unit for new, old in zip(moved.roots, base.roots, strict=True)]
        sums = differences if sums is None else [a + b for a, b in zip(sums, differences, strict=True)]
        tokens, count = base.tokens, count + 1
    if sums is None:
        return None
    mean, error = mean_and_error([one / count for one in sums], tokens)
    # Of one prompt, nothing says how far it is off.
    return mean, abs(mean) if error is None else error


def _moved(active_experts: int, cells: Simulated) -> int:
    """Return an M that is a quarter less, or where there is none, a third more."""
    less = max(min(cells), round(_MOVE * active_experts))
    return less if less < active_experts else min(max(cells), round(active_experts / _MOVE))


def _drawn(measured: Sequence[float], errors: Sequence[float]) -> list[float]:
    """Draw values towards their mean of 1 by the share of their spread that noise explains."""
    noise = fmean(error**2 for error in errors)
    spread = variance(measured) if len(measured) > 1 else 0.0
    true = max(0.0, spread - noise)
    drawn = [
        max(_LEAST, 1 + (value - 1) * (true / (true + error**2) if true + error**2 > 0 else 0.0))
        for value, error in zip(measured, errors, strict=True)
    ]
    mean = fmean(drawn)
    return [value / mean for value in drawn]


def _groups(layers: Sequence[int], most: int) -> list[list[int]]:
    """Return the layers in at most so many groups of neighbors, of almost equal sizes."""
    count = max(1, min(most, len(layers)))
    bounds = [len(layers) * i // count for i in range(count + 1)]
    return [list(layers[low:high]) for low, high in pairwise(bounds)]


def _some(rows: Sequence[int], most: int) -> list[int]:
    """Return at most so many numbers of rows, from the middle of equal parts of the list."""
    count = min(most, len(rows))
    return [rows[len(rows) * (2 * i + 1) // (2 * count)] for i in range(count)]
