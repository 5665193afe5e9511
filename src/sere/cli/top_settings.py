"""What holds in an engine and what changed, as rows of ``sere top``: a name and a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

Row = tuple[str, str]

_NAMES = {
    "tier": "tier", "select_top_k": "S", "active_experts": "M", "threshold": "threshold",
    "min_gain": "least gain", "enabled": "re-routing", "count_only": "only counting",
    "layers": "settings of single layers", "keep": "experts that are kept",
}  # fmt: skip
_HELD = ("select_top_k", "active_experts", "threshold", "min_gain")
# M is told for steps of so many rows.
_ROWS = (8, 32, 128)
_LONGEST = 60


def held(now: Mapping[str, Any]) -> list[Row]:
    """Return the settings that hold, and M for some numbers of rows: of all layers the least and the largest.

    Args:
        now: As in what `LiveServer.fetch` returns.
    """
    settings = now["settings"]
    texts = [f"{_NAMES[name]} {_typed(name, settings[name])}" for name in _HELD if name in settings]
    if own := settings.get("layers"):
        texts.append(f"others in {len(own)} layers")
    limits: dict[int, list[int]] = {}
    for layer in now["layers"]:
        for rows, most in layer["most"]:
            limits.setdefault(rows, []).append(most)
    spans = [f"{rows} rows: {_span(limits[rows])}" for rows in _ROWS if rows in limits]
    return [("settings", ", ".join(texts) or "-")] + ([("M by rows", ", ".join(spans))] if spans else [])


def identity(now: Mapping[str, Any]) -> list[Row]:
    """Return which model and which table they are, and which tiers requests asked for."""
    model = f"{len(now['layers'])} layers, {now['num_experts']} experts, {now['top_k']} per row"
    table = now["table"]["fingerprint"] or "-"
    tiers = ", ".join(now["table"]["tiers"]) or "none"
    asked = ", ".join(f"{name} {steps:,}" for name, steps in now["steps_by_tier"].items())
    rows = [
        ("model", f"{model}, expert kernel {now['kernel'] or 'not known'}"),
        ("table", f"{table}, tiers {tiers}"),
    ]
    return [*rows, *([("steps by tier", asked)] if asked else [])]


def changes(now: Mapping[str, Any], most: int) -> list[Row]:
    """Return what changed and when, the newest first.

    Args:
        now: As in what `LiveServer.fetch` returns.
        most: How many of the last changes are told.
    """
    found: Sequence[Mapping[str, Any]] = now["changes"]
    texts = [f"{_when(one, now['gap_s'])}  {_what(one['what'])}" for one in found[:most]]
    if len(found) > most:
        texts[-1] += f" (and {len(found) - most} before)"
    texts = texts or ["nothing since this server was first looked at"]
    return [("" if at else "what changed", text) for at, text in enumerate(texts)]


def clock(at: float) -> str:
    """Return the local time of a moment, in seconds since 1970."""
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


def _when(change: Mapping[str, Any], gap_s: float) -> str:
    """Return when a change was seen; where nobody had looked for long, also since when."""
    at, after = change["at"], change["after"]
    return f"{clock(after)} to {clock(at)}" if at - after > gap_s else clock(at)


def _what(change: Mapping[str, Any] | str) -> str:
    if isinstance(change, str):
        return "counters set to zero" if change == "reset" else change
    return "; ".join(
        f"{_NAMES.get(name, name)}: {_typed(name, old)} -> {_typed(name, new)}"
        for name, (old, new) in change.items()
    )


def _typed(name: str, value: Any) -> str:
    """Return a setting's value as people type it."""
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if name == "active_experts" and value == 0:
        return "0 (no limit by M)"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and all(isinstance(one, list) for one in value):
        text = "/".join("-".join(map(str, pair)) for pair in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _span(numbers: Sequence[int]) -> str:
    least, largest = min(numbers), max(numbers)
    return f"{least}" if least == largest else f"{least} to {largest}"
