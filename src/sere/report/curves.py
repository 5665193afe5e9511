"""Plots of measurements: the frontier of answers or divergence over experts, and speed over batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sere.bench.replay import REPLAY
from sere.report.cases import Quality, Timing, rule_of
from sere.report.plots import bars, color_of, grid, legend_once, place, plotly
from sere.table.plot import evenly

# Batch sizes of one frontier that are drawn; all are in the table of numbers below it.
_MOST_PLOTS = 6


def draw_frontier(cases: Sequence[Quality]) -> Any:
    """Return what is lost over the experts that are read, one plot per batch size, one line per rule.

    Args:
        cases: All of one measure and of one key.
    """
    sizes = evenly(sorted({case.batch_size for case in cases}), _MOST_PLOTS)
    titles = [f"steps of {size} row{'s' * (size > 1)}" for size in sizes]
    figure = grid(titles, height=400 if len(sizes) < 4 else 300, shared_yaxes="all")
    names = rule_names(cases)
    rules = list(dict.fromkeys(names.values()))
    right = cases[0].measure == "right"
    for index, size in enumerate(sizes):
        at = place(index, titles)
        mine = [case for case in cases if case.batch_size == size]
        for rule in rules:
            line = sorted((one for one in mine if names[id(one)] == rule), key=lambda one: one.after)
            # Off's divergence from itself is rounding, which a logarithmic axis would show as the news.
            if line and (right or rule != "off"):
                figure.add_trace(_answers(line, rule, color_of(rule, rules), right), **at)
        off = next((one for one in mine if one.setting == "off"), None)
        if off is not None and right:
            level = 100 * (off.value["value"] or 0)
            figure.add_hline(
                level, line={"color": "var(--ink)", "width": 1, "dash": "dot"}, opacity=0.5, **at
            )
    figure.update_xaxes(title_text="distinct experts per layer and step", rangemode="tozero")
    if right:
        figure.update_yaxes(title_text="right answers, %", col=1)
    else:
        figure.update_yaxes(type="log", exponentformat="power")
        figure.update_yaxes(title_text="KL from the unmodified model, nats per token", col=1)
    legend_once(figure)
    return figure


def rule_names(cases: Sequence[Quality]) -> dict[int, str]:
    """Return each case's line in a frontier: its rule, and its table if there are several."""
    several = len({case.table for case in cases if case.table}) > 1
    return {
        id(case): f"{rule_of(case.setting)} ({case.table})"
        if several and case.table and rule_of(case.setting).startswith("sere")
        else rule_of(case.setting)
        for case in cases
    }


def _answers(line: Sequence[Quality], rule: str, looks: tuple[str, str], right: bool) -> Any:
    color, symbol = looks
    times = 100 if right else 1
    values = [{name: None if v is None else times * v for name, v in one.value.items()} for one in line]
    about = [
        [one.setting, interval(one.value, times), f"{one.before:.1f} > {one.after:.1f}", _lost(one)]
        for one in line
    ]
    return plotly().graph_objects.Scatter(
        x=[one.after for one in line],
        y=[value["value"] for value in values],
        name=rule,
        mode="lines+markers",
        error_y=bars(values, color),
        customdata=about,
        opacity=0.95,
        line={
            "color": color,
            "width": 2.6 if rule.startswith("sere") else 1.4,
            "dash": "dot" if color == "var(--muted)" else "solid",
        },
        marker=_marker(color, symbol, 9),
        hovertemplate="<b>%{customdata[0]}</b><br>experts %{customdata[2]}<br>"
        f"{'right' if right else 'KL'} %{{customdata[1]}}%{{customdata[3]}}<extra></extra>",
    )


def _marker(color: str, symbol: str, size: int) -> dict[str, Any]:
    """Return a marker whose thin symbols can be told apart, too."""
    line = {"color": color, "width": 2 * symbol.endswith("open")}
    return {"color": color, "symbol": symbol, "size": size, "line": line}


def _lost(case: Quality) -> str:
    found = ""
    if case.difference is not None:
        found = f"<br>against off {interval(case.difference, 100, '{:+.1f}')} points"
    if case.agreement is not None:
        found += f"<br>same most likely token {interval(case.agreement, 100)} %"
    return found if case.note is None else f"{found}<br>nothing was re-routed"


def interval(value: Mapping[str, float | None], times: float = 1, form: str = "") -> str:
    """Return a value with its interval, as text."""
    form = form or ("{:.1f}" if times == 100 else "{:.2g}")
    middle, low, high = (
        None if value[name] is None else form.format(times * (value[name] or 0.0))
        for name in ("value", "low", "high")
    )
    return str(middle) if low is None else f"{middle} ({low} to {high})"


def draw_speed(cases: Sequence[Timing]) -> Any:
    """Return how many times as fast as off each setting is, and its time, over batch size.

    Args:
        cases: All of one key and one measure, those with ``rows`` only.
    """
    titles = ["times as fast as off", "milliseconds"]
    figure = grid(titles, height=340, most=2)
    settings = list(dict.fromkeys(case.setting for case in cases))
    sizes = sorted({case.rows for case in cases if case.rows is not None})
    for setting in settings:
        line = sorted((one for one in cases if one.setting == setting), key=lambda one: one.rows or 0)
        looks = color_of(setting, settings)
        timed = [one for one in line if one.speedup is not None]
        if setting != "off" and timed:
            figure.add_trace(
                _times(timed, [one.speedup for one in timed], setting, looks, "times"), row=1, col=1
            )
        figure.add_trace(_times(line, [one.ms for one in line], setting, looks, "ms"), row=1, col=2)
    figure.add_hline(1, line={"color": "var(--ink)", "width": 1, "dash": "dot"}, opacity=0.6, row=1, col=1)
    figure.update_xaxes(
        title_text="rows of a step, or requests at once",
        type="log",
        tickvals=sizes,
        ticktext=[str(one) for one in sizes],
    )
    figure.update_yaxes(rangemode="tozero")
    legend_once(figure)
    return figure


def _times(
    line: Sequence[Timing], spreads: Sequence[Any], setting: str, looks: tuple[str, str], unit: str
) -> Any:
    color, symbol = looks
    about = [
        [
            one.load,
            f"{one.before:.1f} > {one.after:.1f}"
            if one.before is not None and one.after is not None
            else "not counted",
        ]
        for one in line
    ]
    return plotly().graph_objects.Scatter(
        x=[one.rows for one in line],
        y=[one["p50"] for one in spreads],
        name=setting,
        mode="lines+markers",
        error_y=bars(spreads, color, ("p20", "p50", "p80")),
        customdata=about,
        line={"color": color, "width": 1.8, "dash": "dot" if setting.startswith(REPLAY) else "solid"},
        marker=_marker(color, symbol, 8),
        hovertemplate=f"<b>{setting}</b><br>%{{customdata[0]}}: %{{y:.3g}} {unit}<br>"
        "experts %{customdata[1]}<extra></extra>",
    )
