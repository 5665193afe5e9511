"""The figures of ``sere top`` as text: a summary, lines over time, a bar for each layer, changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sere.cli.top_settings import Row, changes, clock, held, identity
from sere.errors import MOST_NAMED, name_some

_LEVELS, _PLAIN_LEVELS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_NONE = "-"
_KINDS = {
    "rerouted": "re-routed", "mixed": "mixed with prompts", "few_rows": "few rows", "prompts": "prompts only",
    "protected": "protected", "disabled": "switched off", "unknown": "rows unknown",
}  # fmt: skip
# A terminal with fewer lines than this has no blank ones.
_LOW = 30
# A narrower one has no column for critical experts.
_WIDE = 50
# So many layers, if there are as many, are shown before more is told of the model and of what changed.
_LEAST_LAYERS = 8


def view(found: Mapping[str, Any], console: Console, *, fit: bool = False, above: int = 0) -> RenderableType:
    """Return the figures for a terminal or a file.

    Args:
        found: As `LiveServer.fetch` returns it.
        console: Where they go: its width, and what its encoding can show.
        fit: Leave out what its height has no room for: most changes, model and table, the last layers.
        above: How many lines of the height something else takes.
    """
    now = found["now"]
    layers = now["layers"]
    gap = [] if fit and console.height < _LOW else [Text()]
    head: list[RenderableType] = [
        _title(now),
        _grid(_summary(now)),
        *gap,
        *_lines(found["points"], console),
        *gap,
    ]
    notes = _notes(now)
    for known, most in ((identity(now), MOST_NAMED), (identity(now), 3), ([], 3), ([], 1)):
        end: list[RenderableType] = [*gap, _grid([*known, *changes(now, most)]), *notes]
        # Two lines are the heads of the columns, and how many layers are left out.
        room = console.height - above - 2 - _height(Group(*head, *end), console)
        if not fit or room >= min(len(layers), _LEAST_LAYERS):
            break
    room = max(1, room) if fit else len(layers)
    bars: list[RenderableType] = [_bars(layers[:room], now, console)]
    if len(layers) > room:
        bars.append(Text(f"and {len(layers) - room} more layers", style="dim"))
    return Group(*head, *bars, *end)


def lost(error: Exception, found: Mapping[str, Any], console: Console) -> RenderableType:
    """Return what is shown while the server does not answer: why, and the last figures."""
    why = Text(f"no answer since {clock(found['now']['at'])}: {error}", style="bold red")
    return Group(why, view(found, console, fit=True, above=_height(why, console)))


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with so many digits after the point."""
    return _NONE if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """Return a share in percent."""
    return _NONE if value is None else f"{100 * value:.{digits}f} %"


def size(value: float | None) -> str:
    """Return bytes in the unit that keeps the number short."""
    if value is None:
        return _NONE
    units = ["B", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f} {units[0]}"


def sparkline(values: Sequence[float | None], width: int, levels: str = _LEVELS) -> str:
    """Return values as one line of signs whose heights go from 0 to the largest value.

    Args:
        values: None where nothing is known, which is a space.
        width: Most signs; of more values, each sign is the mean of neighbors.
        levels: The signs, the lowest first.
    """
    count = min(width, len(values))
    groups = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    known = [[value for value in group if value is not None] for group in groups]
    means = [sum(group) / len(group) if group else None for group in known]
    top = max((mean for mean in means if mean is not None), default=0.0) or 1.0
    highest = len(levels) - 1
    return "".join(" " if mean is None else levels[round(mean / top * highest)] for mean in means)


def _title(now: Mapping[str, Any]) -> Text:
    state = "on" if now["enabled"] else "off"
    state = "only counting" if now["count_only"] else state
    tier = now["settings"].get("tier")
    style = "bold green" if state == "on" else "bold yellow"
    parts: list[str | tuple[str, str]] = [
        ("sere ", "bold"),
        f"{now['title'] or ''}  ",
        (state, style),
        f", tier {tier}" if tier else "",
    ]
    return Text.assemble(*parts, (f"  table {now['table']['fingerprint']}  {clock(now['at'])}", "dim"))


def _notes(now: Mapping[str, Any]) -> list[Text]:
    notes = []
    if now["unseen"]:
        notes.append(f"never saw a step: layer {name_some(now['unseen'])}")
    if now["nothing_changed"]:
        notes.append(now["nothing_changed"])
    return [Text(note, style="yellow") for note in notes]


def _summary(now: Mapping[str, Any]) -> list[Row]:
    recent, speedup = now["recent"], now["estimate"]["speedup"]
    basis = "predicted times" if now["estimate"].get("basis") == "times" else "bytes of weights"
    over = "since the last reset" if recent["seconds"] is None else f"last {recent['seconds']:.0f} s"
    saved = recent["bytes"]
    rate = "" if recent["seconds"] is None else "/s"
    per = saved if saved is None or recent["seconds"] is None else saved / recent["seconds"]
    steps = [f"{name} {now['steps'][kind]:,}" for kind, name in _KINDS.items() if now["steps"][kind]]
    rows = [
        ("experts per layer", f"{number(recent['before'])} -> {number(recent['after'])} ({over})"),
        ("slots re-routed", percent(recent["rerouted"], 1)),
        ("rows per step", number(recent["rows"])),
        ("critical experts", number(recent["critical"])),
        ("weights not read", _NONE if per is None else f"{size(per)}{rate} per worker"),
        (
            "decoding",
            _NONE if speedup is None else f"up to {speedup:.2f}x, from {basis}, not measured",
        ),
        ("steps", ", ".join(steps) or "none"),
        ("steps per second", _rates(recent)),
        *held(now),
    ]
    if (count := now["server_processes"]) > 1:
        rows.append(("answers from", f"1 of {count} server processes; another has other lines and changes"))
    return rows


def _rates(recent: Mapping[str, Any]) -> str:
    """Return the steps per second of the last seconds, by kind."""
    if recent["seconds"] is None:
        return _NONE
    rates = {name: recent["steps"][kind] / recent["seconds"] for kind, name in _KINDS.items()}
    return ", ".join(f"{name} {number(rate)}" for name, rate in rates.items() if rate) or number(0)


def _grid(rows: Sequence[Row]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def _per_second(point: Mapping[str, Any], *, rerouted: bool) -> float:
    steps = sum(count for kind, count in point["steps"].items() if (kind == "rerouted") is rerouted)
    # As on the page: a moment between two answers makes no peak.
    return float(steps / max(point["seconds"], 0.5))


# What is drawn over time: its name, its value in a point, and how that is written. The page draws these, and
# also weights not read and critical experts, which are numbers only here.
_LINES: tuple[tuple[str, Callable[[Mapping[str, Any]], float | None], Callable[[float | None], str]], ...] = (
    ("experts chosen", lambda point: point["before"], number),
    ("experts read", lambda point: point["after"], number),
    ("rows per step", lambda point: point["rows"], number),
    ("slots re-routed", lambda point: point["rerouted"], lambda value: percent(value, 1)),
    ("re-routed steps", lambda point: _per_second(point, rerouted=True), lambda value: f"{number(value)}/s"),
    ("other steps", lambda point: _per_second(point, rerouted=False), lambda value: f"{number(value)}/s"),
)


def _lines(points: Sequence[Mapping[str, Any]], console: Console) -> list[Text]:
    if not points:
        return [Text("no lines yet: they begin with the second answer", style="dim")]
    plain = _is_plain(console)
    width = max(10, min(60, console.width - 30))
    lines = []
    for title, of, said in _LINES:
        values = [None if one["gap"] else of(one) for one in points]
        line = sparkline(values, width, _PLAIN_LEVELS if plain else _LEVELS)
        last = next((value for value in reversed(values) if value is not None), None)
        lines.append(Text.assemble((f"{title:<17}", "dim"), (line, "cyan"), f" {said(last)}"))
    return lines


def _bars(layers: Sequence[Mapping[str, Any]], now: Mapping[str, Any], console: Console) -> Table:
    """Return a row for each layer: what is read, and behind it what the router chose."""
    full, rest = ("#", "-") if _is_plain(console) else ("█", "░")
    room = max(4, min(50, console.width - 46))
    most = max((layer["before"] or 0 for layer in now["layers"]), default=0) or 1
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("layer", justify="right")
    table.add_column("experts", no_wrap=True)
    titles = ("chosen", "read", "re-routed", "critical")[: 4 if console.width >= _WIDE else 3]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for layer in layers:
        before, after = (round(room * (layer[name] or 0) / most) for name in ("before", "after"))
        bar = Text.assemble((full * after, "cyan"), (rest * (before - after), "dim"))
        cells = [number(layer["before"]), number(layer["after"]), percent(layer["rerouted"])]
        table.add_row(str(layer["index"]), bar, *[*cells, number(layer["critical"])][: len(titles)])
    return table


def _is_plain(console: Console) -> bool:
    """Whether the terminal or file takes no signs but those of ASCII and the like."""
    return not console.encoding.lower().replace("-", "").startswith("utf")


def _height(shown: RenderableType, console: Console) -> int:
    return len(console.render_lines(shown, pad=False))
