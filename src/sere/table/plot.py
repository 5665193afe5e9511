"""Pictures of a table: the layers' matrices, the spread of similarities, the experts nothing resembles."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sere.errors import MissingDependency, how_to_install
from sere.files import atomic_path
from sere.identity import span
from sere.table.artifact import SimilarityTable
from sere.table.layers import best_neighbors, off_diagonal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, FINE_COLUMNS = 6, 8  # of heat maps, up to 24 and beyond
MAX_MAPS = 48
_ALL, _BEST, _UNKNOWN = "#4c72b0", "#dd8452", "#d9d9d9"


def plot(table: SimilarityTable, path: str | os.PathLike[str]) -> None:
    """Draw a table into a picture file, atomically.

    Heat maps of the layers (at most 48, evenly chosen) on one color scale, experts ordered so that alike
    ones are neighbors; the spread of all and of best-neighbor similarities by layer; the share of critical
    experts over the threshold ρ.

    Args:
        table: The table.
        path: The picture; its ending decides the format (``.png``, ``.svg``, ``.pdf``).

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    figure = draw(table)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def draw(table: SimilarityTable) -> Figure:
    """Return the picture as a matplotlib figure that belongs to no window; see `plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(f"a plot needs matplotlib: {how_to_install('plot')}") from error
    shown = evenly(list(table.layers), MAX_MAPS)
    rows = math.ceil(len(shown) / (COLUMNS if len(shown) <= 4 * COLUMNS else FINE_COLUMNS))
    columns = math.ceil(len(shown) / rows)
    heights = [rows * min(4.5, 11.5 / columns + 0.25) + 0.5, 3.6]
    figure = Figure(figsize=(13, sum(heights) + 0.4), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    maps, curves = halves
    figure.suptitle(_title(table), fontsize=11)
    _draw_maps(maps, table, shown, rows, columns)
    spread, critical = curves.subplots(1, 2, width_ratios=[3, 2])
    _draw_spread(spread, table)
    _draw_critical(critical, table)
    return figure


def order(similarity: Tensor) -> list[int]:
    """Order experts so that alike ones are neighbors.

    Groups are merged pair by pair, the most similar first (average linkage), each joined at the ends that are
    most alike.

    Args:
        similarity: ``[E, E]``; need not be symmetric. What is not known, NaN, counts as 0 here.

    Returns:
        All expert ids.
    """
    both = (similarity + similarity.T).double().nan_to_num(nan=0) / 2
    chains = {e: [e] for e in range(len(both))}
    linkage = both.clone().fill_diagonal_(-math.inf)
    while len(chains) > 1:
        at = int(linkage.argmax())
        a, b = divmod(at, len(both))
        size_a, size_b = len(chains[a]), len(chains[b])
        merged = (size_a * linkage[a] + size_b * linkage[b]) / (size_a + size_b)
        chains[a] = _joined(chains[a], chains.pop(b), both)
        linkage[a], linkage[:, a] = merged, merged
        linkage[b], linkage[:, b] = -math.inf, -math.inf
        linkage[a, a] = -math.inf
    return next(iter(chains.values()))


def _joined(first: list[int], second: list[int], similarity: Tensor) -> list[int]:
    ways = [(a, b) for a in (first, first[::-1]) for b in (second, second[::-1])]
    a, b = max(ways, key=lambda way: float(similarity[way[0][-1], way[1][0]]))
    return a + b


def evenly(indices: Sequence[int], most: int) -> list[int]:
    """Return at most so many of the values, in equal distances from the first to the last.

    Args:
        indices: In their order.
        most: At least 2.
    """
    if len(indices) <= most:
        return list(indices)
    return [indices[round(i * (len(indices) - 1) / (most - 1))] for i in range(most)]


def _title(table: SimilarityTable) -> str:
    parameters = ", ".join(f"{name}={value}" for name, value in table.metric_parameters.items())
    metric = f"{table.metric} ({parameters})" if parameters else table.metric
    experts = span(table.identity.experts.values())
    tokens = f", {table.calibration_tokens:,} calibration tokens" if table.calibration_tokens else ""
    return f"{table.identity.name}: similarity of {experts} experts, {metric}{tokens}"


def _draw_maps(figure: Any, table: SimilarityTable, shown: list[int], rows: int, columns: int) -> None:
    axes = figure.subplots(rows, columns, squeeze=False)
    image = None
    for position, axis in enumerate(axes.flat):
        if position >= len(shown):
            axis.set_visible(False)
            continue
        similarity = table.layers[shown[position]].similarity.cpu()
        experts = torch.tensor(order(similarity), device="cpu")
        values = similarity[experts][:, experts].numpy()
        axis.set_facecolor(_UNKNOWN)  # which shows where a value is NaN
        image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        axis.set_title(f"layer {shown[position]}", fontsize=9, pad=3)
        axis.set_xticks([])
        axis.set_yticks([])
    known = not any(bool(table.layers[index].similarity.isnan().any()) for index in shown)
    note = "" if known else "; gray: not known"
    figure.supxlabel(f"replaced by expert p (similar experts side by side{note})", fontsize=9)
    figure.supylabel("expert e", fontsize=9)
    assert image is not None  # a table has at least one layer
    figure.colorbar(image, ax=axes, label="similarity", pad=0.01, aspect=20 * max(1, rows * 4 / columns))


def _draw_spread(axis: Axes, table: SimilarityTable) -> None:
    positions = list(range(len(table.layers)))
    similarities = [layer.similarity.cpu() for layer in table.layers.values()]
    for values, color, label, shift in (
        ([off_diagonal(s) for s in similarities], _ALL, "all pairs of experts", -0.18),
        ([best_neighbors(s) for s in similarities], _BEST, "best other expert", 0.18),
    ):
        parts = torch.tensor([0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64, device="cpu")
        # A layer without any known similarity has no mark.
        quantiles = torch.stack(
            [v.double().nanquantile(parts) if len(v) else parts * math.nan for v in values]
        )
        low, first, middle, third, high = quantiles.T.tolist()
        at = [position + shift for position in positions]
        axis.vlines(at, low, high, color=color, linewidth=1)
        axis.vlines(at, first, third, color=color, linewidth=5, alpha=0.6, label=f"{label}: quartiles, range")
        axis.plot(
            at, middle, "o", color=color, markersize=4, markeredgecolor="white", label=f"{label}: median"
        )
    step = math.ceil(len(positions) / 24)
    axis.set_xticks(positions[::step], [str(index) for index in table.layers][::step])
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("layer")
    axis.set_ylabel("similarity")
    axis.set_title("Spread of similarities", fontsize=10)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)


def _draw_critical(axis: Axes, table: SimilarityTable) -> None:
    thresholds = torch.linspace(0, 1, 201, device="cpu")
    best = [best_neighbors(layer.similarity.cpu()) for layer in table.layers.values()]
    share = torch.stack([(~(of_layer[:, None] >= thresholds)).float().mean(dim=0) for of_layer in best]) * 100
    for row in share:
        axis.plot(thresholds, row, color=_BEST, alpha=0.35 if len(share) < 12 else 0.15, linewidth=0.9)
    axis.plot([], [], color=_BEST, alpha=0.6, linewidth=0.9, label="one layer")
    axis.plot(thresholds, share.mean(dim=0), color="black", linewidth=2, label="mean of layers")
    axis.set_xlim(0, 1)
    axis.set_ylim(-2, 102)
    axis.set_xlabel("threshold ρ")
    axis.set_ylabel("critical experts (%)")
    axis.set_title("Experts that no other resembles", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)
