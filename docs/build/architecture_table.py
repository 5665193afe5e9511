"""The table of architectures: which work, and why the others are refused, in each release of Transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cells import conditions, table
from records import read_json

CHECKS = {
    "found": "experts found",
    "in_memory": "calibrated in memory",
    "layer_by_layer": "layer by layer",
    "table": "table saved, checked",
    "reroute": "re-routed",
    "rivals": "router's scores",
}
_REFUSED = "refused: "


class _Notes:
    """Numbered remarks; one text has one number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        """Return the number of a remark, a new one if the text is new."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def architectures() -> str:
    """Model types that pass all checks, then the others with what does not, then the reasons in full."""
    releases = read_json("architectures.json")
    entries: dict[str, dict[str, Any]] = {}
    for release, record in releases.items():
        for entry in record["architectures"]:
            entries.setdefault(entry["name"], {})[release] = entry
    notes = _Notes()
    differing = {name: _differing(found, notes) for name, found in sorted(entries.items())}
    everything = [[f"`{name}`", _releases(entries[name])] for name, found in differing.items() if not found]
    others = [[f"`{name}`", _releases(entries[name]), found] for name, found in differing.items() if found]
    remarks = "\n".join(f"{number}. {text}" for number, text in enumerate(notes.texts, 1))
    parts = [
        "## Everything works", table(everything, ["model type", "Transformers"]),
        "## Something does not, or is special",
        table(others, ["model type", "Transformers", "check: result (reason below)"]),
        "## Reasons", remarks + conditions(list(releases.values())),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _differing(found: Mapping[str, Any], notes: _Notes) -> str:
    """Name the checks whose result is more or less than a plain yes, with the result."""
    results = {title: _cell(found, check, notes) for check, title in CHECKS.items()}
    return "; ".join(f"{title}: {result}" for title, result in results.items() if result not in ("", "yes"))


def _releases(found: Mapping[str, Any]) -> str:
    return ", ".join(release.removesuffix(".0") for release in found)


def _cell(found: Mapping[str, Any], check: str, notes: _Notes) -> str:
    """Say what came of a check; where releases differ, of each."""
    said: dict[str, list[str]] = {}
    for release, entry in found.items():
        if word := _word(entry, check, notes):
            said.setdefault(word, []).append(release.removesuffix(".0"))
    if len(said) <= 1:
        return next(iter(said), "")
    return ", ".join(f"{word} in {', '.join(releases)}" for word, releases in said.items())


def _word(entry: Mapping[str, Any], check: str, notes: _Notes) -> str:
    # The release has a column of its own.
    text = re.sub(r"Transformers \d+\.\d+\.\d+", "Transformers", entry["checks"].get(check, ""))
    if text.startswith(_REFUSED):
        reason = text.removeprefix(_REFUSED).removeprefix(f"{entry['class']}: ")
        return f"no ({notes.number(reason)})"
    word, _, remark = text.partition("; ")
    if word == "works":
        return f"yes ({notes.number(remark)})" if remark else "yes"
    return f"– ({notes.number(text)})" if text else ""
