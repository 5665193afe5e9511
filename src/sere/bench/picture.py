"""The demonstration's picture: active experts and time per token over batch size."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sere.errors import MissingDependency, how_to_install
from sere.files import atomic_path
from sere.provenance import describe_machine

# Of the Okabe-Ito palette: told apart with any color vision. Off is black.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")


def draw_demo(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the record of ``demonstrate``: experts on the left, time per token on the right.

    Args:
        record: What ``demonstrate`` returned.
        path: The picture, e.g. ``out/demo.png``; written atomically.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    figure = new_figure(9.6, 4.8)
    left, right = figure.subplots(1, 2)
    settings = list(dict.fromkeys(case["setting"] for case in record["cases"]))
    for index, setting in enumerate(settings):
        cases = [case for case in record["cases"] if case["setting"] == setting]
        style = {
            "color": COLORS[index % 6],
            "marker": MARKERS[index % 6],
            "label": setting,
            "linewidth": 1.8,
            # Baselines are dashed, so that a line below them stays visible.
            "linestyle": "-" if setting.startswith(("off", "sere")) else (0, (3, 3)),
        }
        _experts(left, cases, style)
        _times(right, cases, style)
    sizes = sorted({case["batch_size"] for case in record["cases"]})
    name = "batch size (rows of a decode step)"
    batch_axis(left, sizes, f"distinct experts per layer and step (of {record['num_experts']})", name)
    batch_axis(right, sizes, "time per output token, ms", name)
    figure.suptitle(f"{record['model']}: decoding with re-routing off and on", fontsize=11)
    machine = describe_machine(record["provenance"]["machine"])
    note = f"lines: medians; bands: 20th to 80th percentile of the steps; {machine}"
    # Settings have long names, which would cover the lines.
    legend = figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    legend.set(frame_on=False)
    legend.set_title(note)
    legend.get_title().set_fontsize(8)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure that belongs to no window.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(f"the picture needs matplotlib: {how_to_install('plot')}") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure, atomically; the path's ending decides the format."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=_format(path))


def _experts(axes: Any, cases: Sequence[Mapping[str, Any]], style: Mapping[str, Any]) -> None:
    axes.plot([case["batch_size"] for case in cases], [case["distinct_after"] for case in cases], **style)


def _times(axes: Any, cases: Sequence[Mapping[str, Any]], style: Mapping[str, Any]) -> None:
    """Draw the medians with a band from the 20th to the 80th percentile."""
    sizes = [case["batch_size"] for case in cases]
    axes.plot(sizes, [case["tpot_ms"]["p50"] for case in cases], **style)
    low, high = ([case["tpot_ms"][name] for case in cases] for name in ("p20", "p80"))
    axes.fill_between(sizes, low, high, color=style["color"], alpha=0.12, linewidth=0)


def batch_axis(axes: Any, sizes: Sequence[int], title: str, name: str) -> None:
    """Give axes a title, and batch sizes under a name from left to right, each twice the one before."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    plain(axes)


def plain(axes: Any) -> None:
    """Let values start at 0, with faint lines across and no frame."""
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _format(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(os.fspath(path))[1].lstrip(".") or "png"  # noqa: PTH122 - any path-like
