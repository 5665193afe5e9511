"""Plots by layer: experts that are read, sensitivity, similarity maps; and what a tuning found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

from sere.errors import ConfigError, name_some
from sere.report.cases import Quality
from sere.report.curves import interval
from sere.report.plots import COLORS, INK, SYMBOLS, bars, grid, legend_once, place, plotly, without_legend
from sere.reroute.constants import LIMIT_ROWS
from sere.reroute.limits import active_by_rows
from sere.table import SimilarityTable, Tier
from sere.table.plot import evenly, order

MOST_MAPS = 6
_MOST_ROWS = 12


def draw_tiers(
    tiers: Sequence[Tier],
    experts: Mapping[int, int],
    slots: Mapping[int, int],
    sensitivities: Mapping[str, Any] | None,
) -> Any:
    """Return M by layer and rows for each tier, and the layers' sensitivities where they were measured.

    Args:
        tiers: The tiers.
        experts: E by layer index.
        slots: K by layer index.
        sensitivities: What a tuning's record says of them, or None.
    """
    titles = [f"tier {tier.name}: M, experts that a layer may read" for tier in tiers]
    if sensitivities is not None:
        titles.append("sensitivity (1 is the mean layer); bars: standard error")
    figure = grid(titles, height=280, most=2)
    most = max(experts.values())
    for index, tier in enumerate(tiers):
        at = place(index, titles, 2)
        rows = evenly(_rows_of(tier), _MOST_ROWS)
        found = {
            layer: active_by_rows(tier.for_layer(layer).active_experts, E, slots[layer])
            for layer, E in experts.items()
        }
        values = [[found[layer][min(B, LIMIT_ROWS) - 1] for layer in found] for B in rows]
        figure.add_trace(
            plotly().graph_objects.Heatmap(
                x=[str(layer) for layer in found],
                y=[str(B) for B in rows],
                z=values,
                customdata=[list(experts.values())] * len(rows),
                zmin=0,
                zmax=most,
                coloraxis="coloraxis",
                texttemplate="%{z}" if len(found) <= 16 else None,
                xgap=1,
                ygap=1,
                hovertemplate="layer %{x}, %{y} rows<br>M = %{z} of %{customdata}<extra></extra>",
            ),
            **at,
        )
        # To the right, there is no room for it.
        figure.update_yaxes(title_text="rows of a step" if at["col"] == 1 else None, type="category", **at)
    if sensitivities is not None:
        _add_sensitivities(figure, sensitivities, place(len(tiers), titles, 2))
    figure.update_xaxes(title_text="layer", type="category", showgrid=False)
    without_legend(figure, "M", 0, most)
    return figure


def _rows_of(tier: Tier) -> list[int]:
    points = [tier.active_experts, *(tier.for_layer(index).active_experts for index in tier.layers)]
    rows = {rows for one in points if isinstance(one, tuple) for rows, _ in one}
    return sorted(rows - {1}) or [1, 8, 16, 32, 64]


def _add_sensitivities(figure: Any, sensitivities: Mapping[str, Any], at: Mapping[str, int]) -> None:
    groups = sensitivities["layers"]
    figure.add_trace(
        plotly().graph_objects.Bar(
            x=[", ".join(map(str, group["layers"])) for group in groups],
            y=[group["sensitivity"] for group in groups],
            customdata=[[group["measured"], group["standard_error"]] for group in groups],
            marker={"color": COLORS[0]},
            error_y={
                "type": "data",
                "array": [group["standard_error"] for group in groups],
                "color": INK,
                "thickness": 1,
                "width": 3,
            },
            hovertemplate="layer %{x}<br>sensitivity %{y:.2f}<br>measured %{customdata[0]:.2f}, "
            "standard error %{customdata[1]:.2f}<extra></extra>",
        ),
        **at,
    )


def draw_layer_use(cases: Sequence[Quality]) -> Any:
    """Return the distinct experts that each layer read, by setting, at the largest batch size.

    Args:
        cases: All of one key; those whose layers are known are drawn.
    """
    size = max(case.batch_size for case in cases if case.layers)
    shown = [case for case in cases if case.layers and case.batch_size == size]
    shown.sort(key=lambda case: case.after)
    layers = sorted({index for case in shown for index in case.layers})
    values = [[case.layers.get(index) for index in layers] for case in shown]
    titles = [f"distinct experts that a layer read, steps of {size} rows"]
    figure = grid(titles, height=80 + 24 * len(shown), most=1)
    figure.add_trace(
        plotly().graph_objects.Heatmap(
            x=[str(index) for index in layers],
            y=[case.setting for case in shown],
            z=values,
            coloraxis="coloraxis",
            texttemplate="%{z:.0f}" if len(layers) <= 24 else None,
            xgap=1,
            ygap=1,
            hovertemplate="<b>%{y}</b><br>layer %{x}: %{z:.1f} experts<extra></extra>",
        )
    )
    known = [value for row in values for value in row if value is not None]
    figure.update_xaxes(title_text="layer", type="category", showgrid=False)
    figure.update_yaxes(showgrid=False, automargin=True)
    without_legend(figure, "experts", 0, max(known))
    return figure


def draw_maps(table: SimilarityTable, layers: Sequence[int] | None = None) -> Any:
    """Return similarity maps of some layers, alike experts side by side.

    Args:
        table: The table.
        layers: Decoder-layer indices; None for at most six, from the first to the last.

    Raises:
        ConfigError: The table lacks one of them.
    """
    known = list(table.layers)
    shown = evenly(known, MOST_MAPS) if layers is None else list(dict.fromkeys(layers))
    missing = [index for index in shown if index not in table.layers]
    if missing:
        raise ConfigError(
            f"--layer: expected layers of the table ({name_some(known)}), got {name_some(missing)}"
        )
    titles = [f"layer {index}" for index in shown]
    figure, found = grid(titles, height=340), list[float]()
    for position, index in enumerate(shown):
        similarity = table.layers[index].similarity.cpu()
        experts = order(similarity)
        # Of an expert with itself it is 1, which is no news and would outshine the rest.
        values = similarity.double().fill_diagonal_(nan)[experts][:, experts].tolist()
        found += [value for row in values for value in row if value == value]
        names = [f"expert {expert}" for expert in experts]
        figure.add_trace(
            plotly().graph_objects.Heatmap(
                z=[[None if value != value else round(value, 3) for value in row] for row in values],
                x=names,
                y=names,
                coloraxis="coloraxis",
                hovertemplate="%{y} replaced by %{x}<br>similarity %{z:.3f}<extra></extra>",
            ),
            **place(position, titles),
        )
    figure.update_xaxes(showticklabels=False, showgrid=False)
    figure.update_yaxes(showticklabels=False, showgrid=False, autorange="reversed")
    without_legend(figure, "similarity", 0, max(found, default=1.0))
    return figure


def draw_tuning(record: Mapping[str, Any]) -> Any:
    """Return the losses that a tuning measured over experts, and the tiers that it chose.

    Args:
        record: Of ``sere tune``.
    """
    titles = [
        "all layers alike, on the tuning prompts; stars: tiers, on held-out prompts",
        "experts that a tier reads, over rows",
    ]
    figure = grid(titles, height=380, most=2)
    go = plotly().graph_objects
    sizes = list(record["measured"])
    for index, rows in enumerate(sizes):
        cells = [(M, cell) for M, cell in record["measured"][rows].items() if cell["kl"]["value"] > 0]
        cells.sort(key=lambda item: float(item[1]["experts_after"]))
        color = COLORS[index % len(COLORS)]
        figure.add_trace(_losses(cells, f"{rows} rows", color, SYMBOLS[index % len(SYMBOLS)]), row=1, col=1)
    for index, (name, tier) in enumerate(record["tiers"].items()):
        found = {B: cell for B, cell in tier["evidence"]["by_batch_size"].items() if cell["kl"]["value"] > 0}
        about = [[name, B, interval(cell["kl"])] for B, cell in found.items()]
        color = COLORS[(len(sizes) + index) % len(COLORS)]
        figure.add_trace(
            go.Scatter(
                x=[cell["experts_after"] for cell in found.values()],
                y=[cell["kl"]["value"] for cell in found.values()],
                customdata=about,
                name=f"tier {name}",
                mode="markers",
                marker={
                    "symbol": "star",
                    "size": 13,
                    "color": color,
                    "line": {"color": "var(--card)", "width": 1},
                },
                hovertemplate="<b>tier %{customdata[0]}</b>, %{customdata[1]} rows, held-out prompts<br>"
                "experts %{x:.1f}<br>KL %{customdata[2]}<extra></extra>",
            ),
            row=1,
            col=1,
        )
        accepted = tier["evidence"].get("accepted_kl")
        if accepted:
            figure.add_hline(accepted, line={"color": color, "width": 1, "dash": "dot"}, row=1, col=1)
        cells = tier["evidence"]["by_batch_size"]
        figure.add_trace(
            go.Scatter(
                x=[int(B) for B in cells],
                y=[cell["experts_after"] for cell in cells.values()],
                name=f"tier {name}",
                mode="lines+markers",
                line={"color": color, "width": 2},
                marker={"size": 8},
                hovertemplate=f"<b>tier {name}</b><br>%{{x}} rows: %{{y:.1f}} experts<extra></extra>",
            ),
            row=1,
            col=2,
        )
    before = {
        int(B): cell["experts_before"]
        for tier in record["tiers"].values()
        for B, cell in tier["evidence"]["by_batch_size"].items()
    }
    figure.add_trace(
        go.Scatter(
            x=list(before),
            y=list(before.values()),
            name="off",
            mode="lines+markers",
            line={"color": INK, "dash": "dot"},
            hovertemplate="off, %{x} rows: %{y:.1f} experts<extra></extra>",
        ),
        row=1,
        col=2,
    )
    figure.update_yaxes(type="log", exponentformat="power", title_text="KL, nats per token", row=1, col=1)
    figure.update_xaxes(title_text="distinct experts per layer and step", row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=1, col=2)
    figure.update_xaxes(
        title_text="rows of a decode step",
        type="log",
        tickvals=list(before),
        ticktext=list(map(str, before)),
        row=1,
        col=2,
    )
    legend_once(figure)
    return figure


def _losses(cells: Sequence[tuple[str, Mapping[str, Any]]], name: str, color: str, symbol: str) -> Any:
    return plotly().graph_objects.Scatter(
        x=[cell["experts_after"] for _, cell in cells],
        y=[cell["kl"]["value"] for _, cell in cells],
        error_y=bars([cell["kl"] for _, cell in cells], color),
        name=name,
        mode="lines+markers",
        customdata=[[M, interval(cell["kl"])] for M, cell in cells],
        line={"color": color, "width": 1.4},
        marker={"color": color, "symbol": symbol, "size": 7},
        hovertemplate=f"<b>M = %{{customdata[0]}}</b>, {name}<br>experts %{{x:.1f}}<br>"
        "KL %{customdata[1]}<extra></extra>",
    )
