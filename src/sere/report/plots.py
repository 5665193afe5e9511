"""What all plots of a report share: the library, its script, colors, axes. Plotly is imported here only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import ceil
from typing import Any

from sere.errors import MissingDependency, how_to_install

# Colors are names of the page's style sheet, which has one value for light and one for dark; page.js puts
# them in. The first is for off. Okabe-Ito's palette, so that any color vision tells them apart.
INK = "var(--ink)"
COLORS = tuple(f"var(--line{index})" for index in range(1, 11))
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "pentagon", "x", "star", "triangle-down", "hexagon")
# Controls: what they show is that similarity matters, so they stay in the background.
CONTROLS = ("random", "drop")
MOST_COLUMNS = 3


@cache
def plotly() -> Any:
    """Return the plotting library.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        import plotly.graph_objects
        import plotly.subplots
    except ImportError as error:
        raise MissingDependency(f"a report needs plotly: {how_to_install('report')}") from error
    return plotly


def script() -> str:
    """Return the library's script, which the page contains.

    Raises:
        MissingDependency: The library is not installed.
    """
    plotly()
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def color_of(rule: str, rules: Sequence[str]) -> tuple[str, str]:
    """Return the color and the symbol of a rule.

    Args:
        rule: One of them.
        rules: All rules of the figure, in their order.
    """
    if rule in ("off", "vanilla"):
        return INK, "circle-open" if rule == "off" else "square-open"
    if rule.partition(":")[0].partition(",")[0] in CONTROLS:
        return "var(--muted)", "cross-thin-open" if rule.startswith("random") else "line-ew-open"
    others = [one for one in rules if one not in ("off", "vanilla") and one.partition(":")[0] not in CONTROLS]
    index = others.index(rule)
    return COLORS[index % len(COLORS)], SYMBOLS[index % len(SYMBOLS)]


def grid(titles: Sequence[str], *, height: int, most: int = MOST_COLUMNS, **options: Any) -> Any:
    """Return an empty figure with one plot below each title.

    Args:
        titles: Of the plots.
        height: Of a row of plots, in pixels.
        most: Plots beside each other.
        **options: Further arguments of ``make_subplots``.
    """
    columns = _columns(titles, most)
    rows = ceil(len(titles) / columns)
    gap = 90 / (rows * height)
    options = {"horizontal_spacing": 0.06 if columns > 1 else 0.0, "vertical_spacing": gap} | options
    figure = plotly().subplots.make_subplots(rows, columns, subplot_titles=titles, **options)
    style(figure, rows * height)
    return figure


def place(index: int, titles: Sequence[str], most: int = MOST_COLUMNS) -> dict[str, int]:
    """Return where a plot of a `grid` is, as the library's arguments."""
    columns = _columns(titles, most)
    return {"row": index // columns + 1, "col": index % columns + 1}


def _columns(titles: Sequence[str], most: int) -> int:
    """Return how many plots are beside each other: two rows of two are calmer than three and one."""
    return 2 if len(titles) == 4 and most > 2 else min(len(titles), most)


def style(figure: Any, height: int) -> None:
    """Give a figure the page's looks."""
    axis = {
        "gridcolor": "var(--grid)",
        "linecolor": "var(--grid)",
        "zeroline": False,
        "ticks": "",
        "title": {"font": {"size": 12}, "standoff": 8},
    }
    figure.update_layout(
        template="none",
        height=height + 90,
        margin={"l": 56, "r": 12, "t": 52, "b": 90},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        hoverlabel={
            "bgcolor": "var(--card)",
            "bordercolor": "var(--muted)",
            "font": {"color": INK},
            "align": "left",
        },
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "var(--muted)", "activecolor": INK},
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_annotations(font={"size": 12, "color": "var(--muted)"})


def bars(values: Sequence[Any], color: str, names: tuple[str, str, str] = ("low", "value", "high")) -> Any:
    """Return error bars.

    Args:
        values: Each with a lower bound, a value and an upper bound; bounds of None have no bar.
        color: Of the bars.
        names: What the three are called.
    """
    low, middle, high = names
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1,
        "width": 3,
        "color": color,
        "array": [
            max(0.0, (one[middle] if one[high] is None else one[high]) - one[middle]) for one in values
        ],
        "arrayminus": [
            max(0.0, one[middle] - (one[middle] if one[low] is None else one[low])) for one in values
        ],
    }


def without_legend(figure: Any, title: str, low: float, high: float) -> None:
    """Give heat maps one color scale, in the place of a legend.

    Args:
        figure: Whose heat maps have the color axis ``coloraxis``.
        title: What the colors show.
        low: The value of the darkest color.
        high: That of the brightest.
    """
    bar = {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0, "len": 1.0}
    axis = {"colorscale": "Viridis", "cmin": low, "cmax": high, "colorbar": bar}
    figure.update_layout(coloraxis=axis, showlegend=False, margin={"b": 56}, height=figure.layout.height - 34)


def legend_once(figure: Any) -> None:
    """Show each name once in the legend; a click there hides it in all plots."""
    seen: set[str] = set()
    for trace in figure.data:
        if trace.name is None:
            continue
        trace.legendgroup = trace.name
        trace.showlegend = trace.name not in seen
        seen.add(trace.name)
