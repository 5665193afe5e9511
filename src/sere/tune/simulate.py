"""What re-routing would change at every M, from the routing that the table holds: the model does not run."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from sere.errors import TableError
from sere.table import SimilarityTable
from sere.table.expected_loss import Expected, expected_error

Simulated = dict[int, Expected]
"""By M: relative error and distinct experts before and after, as means over all layers."""


def simulate(table: SimilarityTable, rows: int, *, seed: int = 0) -> Simulated:
    """Return what steps of so many rows do at every M, from K to where nothing is re-routed any longer.

    Args:
        table: The similarities, with the router's choices on calibration tokens.
        rows: B.
        seed: Seed of which tokens share a step.

    Raises:
        TableError: The table has no such choices.
    """
    return mean_of_layers(simulate_layers(table, rows, seed=seed))


def mean_of_layers(cells: Mapping[int, Simulated]) -> Simulated:
    """Return the plain mean of what is said of single layers, by M."""
    return {
        M: Expected(*map(fmean, zip(*(found[M] for found in cells.values()), strict=True)))
        for M in next(iter(cells.values()))
    }


def simulate_layers(table: SimilarityTable, rows: int, *, seed: int = 0) -> dict[int, Simulated]:
    """Return the same by decoder-layer index, for single layers.

    Args:
        table: As for `simulate`, like the other arguments.
        rows: B.
        seed: Seed of which tokens share a step.

    Raises:
        TableError: The table does not hold the router's choices.
    """
    if table.routing is None:
        raise TableError(
            "the table does not hold the router's choices on calibration tokens, from which tuning starts: "
            "an older sere made it, or a metric that needs no texts; calibrate again"
        )
    K = table.identity.top_k
    most = max(K, min(table.num_experts, rows * K))
    grid = range(K, most + 1)
    found = {}
    for index in table.routing.ids:
        cells = expected_error(table.routing, table.layers[index], index, grid, [rows], seed=seed)
        found[index] = {M: cells[rows, M] for M in grid}
    return found
