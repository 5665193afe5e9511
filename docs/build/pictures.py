"""The documents' pictures, drawn from the same records as their tables."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from records import Record
from sere.bench import picture

# Four more colors than there, and markers for all of them.
COLORS = (*picture.COLORS, "#56B4E9", "#999999", "#882255", "#7A6A00")
MARKERS = (*picture.MARKERS, "X", "<", ">", "*")


def recommended(cases: Mapping[int, tuple[Record, Record]]) -> str:
    """Draw time per token and right answers over the batch size, baseline and recommended setting.

    Args:
        cases: By batch size: without re-routing, with the recommended setting; both of one run.

    Returns:
        The picture, as SVG, on white, so that it reads on light and on dark pages.
    """
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    times, answers = figure.subplots(1, 2)
    sizes = sorted(cases)
    for index, name in enumerate(("without sere", "with sere, recommended setting")):
        line = [cases[size][index] for size in sizes]
        style = {"color": COLORS[index], "marker": MARKERS[index], "linewidth": 1.8, "label": name}
        times.plot(sizes, [case["tpot_ms"]["p50"] for case in line], **style)
        shares = [case["share"] for case in line]
        answers.errorbar(
            # Side by side, so that the bars of one do not hide those of the other.
            [size * (0.97, 1.03)[index] for size in sizes],
            [100 * share["value"] for share in shares],
            yerr=_bars(shares), elinewidth=1.2, capsize=3, **style,
        )  # fmt: skip
    for size in sizes:
        faster = cases[size][1]
        times.annotate(
            f"{faster['speedup']['p50']:.2f}x", (size, faster["tpot_ms"]["p50"]),
            xytext=(0, -14), textcoords="offset points", ha="center", fontsize=9, color=COLORS[1],
        )  # fmt: skip
    axis = "batch size (rows of a decode step)"
    picture.batch_axis(times, sizes, "time per output token, ms; labels: times as fast", axis)
    picture.batch_axis(answers, sizes, "right answers, %; bars: 95 % intervals", axis)
    times.legend(frameon=False, fontsize=9, loc="upper left")
    answers.legend(frameon=False, fontsize=9, loc="lower right")
    answers.set_ylim(0, 104)
    return _svg(figure)


def serve(records: Sequence[Record]) -> str:
    """Draw how much faster a vLLM engine is than off, and its distinct experts, over the batch size.

    Args:
        records: Of ``sere bench serve``; replays and the engine without sere are left out.

    Returns:
        The picture, as SVG; one row per model.
    """
    # A floor's engine has an off of its own, which its ratios are to; one line of off is enough to draw.
    shown = [
        record
        for record in records
        if record["experts"] is not None
        and not (record["setting"] == "off" and record["config"].get("start"))
    ]
    models = list(dict.fromkeys(record["subject"]["model"] for record in shown))
    settings = list(dict.fromkeys(record["setting"] for record in shown))
    ways = list(dict.fromkeys(_way(record) for record in shown))
    figure = Figure(figsize=(9.6, 0.6 + 3.4 * len(models)), layout="constrained")
    for model, (faster, experts) in zip(models, figure.subplots(len(models), 2, squeeze=False), strict=True):
        mine = [record for record in shown if record["subject"]["model"] == model]
        for way in ways:
            for setting in settings:
                line = [one for one in mine if _way(one) == way and one["setting"] == setting]
                if not line:
                    continue
                line.sort(key=lambda record: int(record["batch_size"]))
                style = _style(settings.index(setting), ways.index(way))
                name = setting
                style["label"] = name if len(ways) == 1 else f"{name}, {way}"
                sizes = [record["batch_size"] for record in line]
                if setting != "off":
                    faster.plot(sizes, [record["speedup"]["p50"] for record in line], **style)
                style["label"] = name
                if way == _way(mine[0]):  # the others route alike
                    experts.plot(sizes, [record["experts"]["distinct_after"] for record in line], **style)
        sizes = sorted({record["batch_size"] for record in mine})
        counts = f"distinct experts per layer and step (of {mine[0]['subject']['num_experts']})"
        picture.batch_axis(faster, sizes, f"{model}: times as fast as off", "requests at once")
        picture.batch_axis(experts, sizes, counts, "requests at once")
        faster.axhline(1, color=COLORS[0], linewidth=1)
        for axes in (faster, experts):
            axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def rules(beds: Mapping[str, Record]) -> str:
    """Draw right answers over distinct experts, one marker per rule; further up and further left is better.

    Args:
        beds: Records of ``sere eval`` by the name of the test bed, each at one batch size.

    Returns:
        The picture, as SVG; the beds are side by side.
    """
    figure = Figure(figsize=(9.6, 5), layout="constrained")
    names: dict[str, None] = {}
    for record in beds.values():
        names |= dict.fromkeys(_rule(case["setting"]) for case in record["cases"])
    handles = {}
    for (bed, record), axes in zip(
        beds.items(), figure.subplots(1, len(beds), squeeze=False)[0], strict=True
    ):
        for index, name in enumerate(names):
            line = [case for case in record["cases"] if _rule(case["setting"]) == name]
            if line:
                style = _style(index, again := index // len(COLORS))
                style["marker"] = MARKERS[(index + 3 * again) % len(MARKERS)]
                handles[name] = _answers(axes, line, name, style)
        axes.set_xlabel("distinct experts per layer and step")
        axes.set_title(f"{bed}, batch size {record['cases'][0]['batch_size']}", fontsize=10, loc="left")
        picture.plain(axes)
        axes.set_xlim(left=0)
        axes.set_ylim(50, 102)
    figure.axes[0].set_ylabel("right answers, %; bars: 95 % intervals")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return _svg(figure)


def _answers(axes: Any, line: Sequence[Record], name: str, style: Mapping[str, Any]) -> Any:
    """Draw one rule's right answers over its experts; return what a legend shows."""
    line = sorted(line, key=lambda case: float(case["experts"]["distinct_after"]))
    shares = [case["tasks"]["all"]["share"] for case in line]
    return axes.errorbar(
        [case["experts"]["distinct_after"] for case in line],
        [100 * share["value"] for share in shares],
        yerr=_bars(shares), elinewidth=0.8, capsize=2, label=name, **style,
    )  # fmt: skip


def _bars(shares: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Return how far intervals reach below and above shares, in percent."""
    return [
        [100 * (share["value"] - share["low"]) for share in shares],
        [100 * (share["high"] - share["value"]) for share in shares],
    ]


def _rule(setting: str) -> str:
    """Return a setting without the number that moves it along its line."""
    kind, _, options = setting.partition(":")
    kept = [one for one in options.split(",") if one == "paper" or one.startswith("mode=")]
    return ", ".join([kind, *kept])


def _way(record: Record) -> str:
    threads = record["provenance"]["machine"]["threads"]
    return f"{record['config']['mode']}, {threads} thread{'s' * (threads > 1)}"


def _style(index: int, dashes: int) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linewidth": 1.6,
        "linestyle": ("-", (0, (3, 3)), (0, (1, 2)), (0, (5, 1, 1, 1)))[dashes % 4],
    }


def _svg(figure: Figure) -> str:
    """Return a figure as SVG, the same text each time; letters stay letters, so no font is drawn in."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sere", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
