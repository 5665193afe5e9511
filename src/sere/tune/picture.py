"""The picture of a tuning: loss over experts, and experts over rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sere.bench.picture import COLORS, MARKERS, batch_axis, new_figure, save_figure


def draw_frontier(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the record of a tuning: measured losses on the left, the tiers on the right.

    Args:
        record: What `tune` returned.
        path: The picture, e.g. ``tuning.png``; written atomically.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    save_figure(draw(record), path)


def draw(record: Mapping[str, Any]) -> Any:
    """Return the picture as a matplotlib figure that belongs to no window; see `draw_frontier`."""
    figure = new_figure(9.6, 4.8)
    left, right = figure.subplots(1, 2)
    _losses(left, record)
    _tiers(right, record)
    figure.suptitle(f"{record['model']['name']}: the fewest experts for an accepted loss", fontsize=11)
    return figure


def _losses(axes: Any, record: Mapping[str, Any]) -> None:
    """Draw one line of measured losses for each number of rows, and the accepted losses across."""
    axes.set_title("loss on the tuning prompts, KL in nats per token", fontsize=10, loc="left")
    axes.set_xlabel(f"distinct experts per layer and step (of {record['model']['num_experts']})")
    axes.set_yscale("log")
    for index, (rows, cells) in enumerate(record["measured"].items()):
        points = sorted((cell["experts_after"], cell["kl"]["value"]) for cell in cells.values())
        points = [(experts, kl) for experts, kl in points if kl > 0]
        style = {"color": COLORS[index % 6], "marker": MARKERS[index % 6], "linewidth": 1.4}
        if points:
            axes.plot(*zip(*points, strict=True), label=f"{rows} rows", **style)
    for name, tier in record["tiers"].items():
        accepted = tier["evidence"]["accepted_kl"]
        if accepted is not None:
            axes.axhline(accepted, color="#666666", linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(
                name, (1, accepted), xycoords=("axes fraction", "data"), fontsize=8, ha="right", va="bottom"
            )
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _tiers(axes: Any, record: Mapping[str, Any]) -> None:
    """Draw M over rows for each tier, and what is read without re-routing."""
    sizes = [int(rows) for rows in record["simulated"]]
    before = [next(iter(cells.values()))["before"] for cells in record["simulated"].values()]
    axes.plot(sizes, before, color=COLORS[0], linestyle=(0, (3, 3)), label="off")
    for index, (tier, found) in enumerate(record["tiers"].items()):
        points = [point for point in found["active_experts"] if point[0] > 1]
        color, marker = COLORS[1 + index % 5], MARKERS[index % 6]
        axes.plot(*zip(*points, strict=True), label=tier, color=color, marker=marker, linewidth=1.8)
        _layer_range(axes, found.get("layers") or {}, color)
    # Last, because it fixes the range of the values.
    batch_axis(axes, sizes, f"experts (of {record['model']['num_experts']})", "rows of a decode step")
    axes.legend(frameon=False, fontsize=8)


def _layer_range(axes: Any, layers: Mapping[str, Any], color: str) -> None:
    """Shade from the layer that reads least to the one that reads most, if they differ."""
    if not layers:
        return
    by_rows = [[M for _, M in points[1:]] for points in layers.values()]
    sizes = [rows for rows, _ in next(iter(layers.values()))[1:]]
    low, high = map(min, zip(*by_rows, strict=True)), map(max, zip(*by_rows, strict=True))
    axes.fill_between(sizes, list(low), list(high), color=color, alpha=0.12, linewidth=0)
