"""Spread experts over the layers: each goes where it saves most, so that marginal gains become equal."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from statistics import fmean
from typing import NamedTuple

from sere.table.expected_loss import Expected
from sere.tune.simulate import Simulated

# Rounding of sums of experts.
_ROUNDING = 1e-9


class _Corner(NamedTuple):
    """One M of one layer: experts that a step reads, and what they lose."""

    after: float
    cost: float
    active_experts: int


def spread(
    cells: Mapping[int, Simulated], sensitivities: Mapping[int, float]
) -> tuple[dict[int, tuple[int, ...]], Simulated]:
    """Return, for every M, what each layer reads so that all read as many experts as with M in each.

    What a layer loses is its sensitivity times the square of its simulated error: the square, because a
    layer that reads much less than where it was measured loses more than in proportion. Experts go, one after
    the other, to the layer in which the next one saves most: along the lower convex hull of each layer's loss
    over the experts that it reads. So a larger M never takes experts from a layer.

    Args:
        cells: What the table says at one number of rows, by layer.
        sensitivities: Loss per unit of squared relative error by layer, above 0.

    Returns:
        By M: the layers' numbers in the order of ``cells``; and what to expect of them.
    """
    layers = list(cells)
    hulls = [_hull(cells[index], sensitivities[index]) for index in layers]
    # Along a hull the gain of an expert falls, so that this order takes no corner before the last one.
    gains = [
        ((hull[i - 1].cost - hull[i].cost) / (hull[i].after - hull[i - 1].after), -place, i)
        for place, hull in enumerate(hulls)
        for i in range(1, len(hull))
    ]
    steps = sorted(gains, key=lambda step: (-step[0], -step[1], step[2]))
    at, left = [0] * len(layers), iter(steps)
    read = sum(hull[0].after for hull in hulls)
    found, expected = {}, {}
    following = next(left, None)
    for M in sorted(next(iter(cells.values()))):
        most = sum(cells[index][M].after for index in layers) + _ROUNDING
        while following is not None:
            place, i = -following[1], following[2]
            more = hulls[place][i].after - hulls[place][i - 1].after
            if read + more > most:
                break
            read, at[place] = read + more, i
            following = next(left, None)
        found[M] = tuple(hull[i].active_experts for hull, i in zip(hulls, at, strict=True))
        expected[M] = expect(cells, dict(zip(layers, found[M], strict=True)), sensitivities)
    return found, expected


def expect(
    cells: Mapping[int, Simulated], active_experts: Mapping[int, int], weights: Mapping[int, float]
) -> Expected:
    """Return what to expect of layers that read different numbers of experts.

    Args:
        cells: What the table says at one number of rows, by layer.
        active_experts: M by layer.
        weights: How much the square of each layer's error counts.

    Returns:
        The root of the weighted mean square of the errors, and plain means of the rest.
    """
    chosen = [cells[index][M] for index, M in active_experts.items()]
    by = [weights[index] for index in active_experts]
    square = sum(one.error**2 * weight for one, weight in zip(chosen, by, strict=True)) / sum(by)
    _, before, after, pairs = map(fmean, zip(*chosen, strict=True))
    return Expected(sqrt(square), before, after, pairs)


def _hull(cells: Simulated, sensitivity: float) -> list[_Corner]:
    """Return the corners of the lower convex hull of loss over experts, where the loss falls."""
    corners: list[_Corner] = []
    for M in sorted(cells):
        new = _Corner(cells[M].after, sensitivity * cells[M].error ** 2, M)
        if corners and (new.cost >= corners[-1].cost or new.after <= corners[-1].after):
            continue
        while len(corners) > 1 and not _bends(corners[-2], corners[-1], new):
            corners.pop()
        corners.append(new)
    return corners


def _bends(first: _Corner, middle: _Corner, last: _Corner) -> bool:
    """Whether the middle one is below the line between the others."""
    before = (first.cost - middle.cost) * (last.after - middle.after)
    return before > (middle.cost - last.cost) * (middle.after - first.after)
