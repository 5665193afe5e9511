"""What re-routing would change at every M, from the routing that the table holds: the model does not run."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from sere.errors import TableError
from sere.table import SimilarityTable
from sere.table.expected_loss import Expected, expected_error

Simulated = dict[int, Expected]
"""By M: relative error, distinct experts before and after, and pairs, as means over all layers."""


def simulate(table: SimilarityTable, rows: int, *, min_gain: float = 0.0, seed: int = 0) -> Simulated:
    """Return what steps of so many rows do at every M, from K to where nothing is re-routed any longer.

    Args:
        table: The similarities, with the router's choices on calibration tokens.
        rows: B.
        min_gain: τ.
        seed: Seed of which tokens share a step.

    Raises:
        TableError: The table has no such choices.
    """
    return mean_of_layers(simulate_layers(table, rows, min_gain=min_gain, seed=seed))


def mean_of_layers(cells: Mapping[int, Simulated]) -> Simulated:
    """Return the plain mean of what is said of single layers, by M."""
    return {
        M: Expected(*map(fmean, zip(*(found[M] for found in cells.values()), strict=True)))
        for M in next(iter(cells.values()))
    }


def simulate_layers(
    table: SimilarityTable, rows: int, *, min_gain: float = 0.0, seed: int = 0
) -> dict[int, Simulated]:
    """Return the same by decoder-layer index, for single layers; all of them at the same numbers.

    The numbers go from the largest K of a layer to where nothing is re-routed in any layer.

    Args:
        table: As for `simulate`, like the other arguments.
        rows: B.
        min_gain: τ.
        seed: Seed of which tokens share a step.

    Raises:
        TableError: The table does not hold the router's choices.
    """
    if table.routing is None:
        raise TableError(
            "the table does not hold the router's choices on calibration tokens, from which tuning starts: "
            "an older sere made it, or a metric that needs no texts; calibrate again"
        )
    layers, slots = table.routing.ids, table.identity.slots
    K = max(slots[index] for index in layers)
    most = max(min(table.layers[index].num_experts, rows * slots[index]) for index in layers)
    grid = range(K, max(K, most) + 1)
    found = {}
    for index in layers:
        cells = expected_error(
            table.routing, table.layers[index], index, grid, [rows], min_gain=min_gain, seed=seed
        )
        found[index] = {M: cells[rows, M] for M in grid}
    return found
