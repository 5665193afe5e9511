"""Pieces of a page: every text is escaped here, because records may come from anybody."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from typing import Any

# A loss of such a share of right answers has the darkest background.
DARKEST = 0.25


class Page:
    """Collects the pieces of one page, and numbers its plots."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._plots = count(1)

    def add(self, text: str) -> None:
        """Add a piece of HTML."""
        self._parts.append(text)

    def heading(self, level: int, text: str, about: str = "") -> None:
        """Add a heading, and a paragraph that says what is below it."""
        self.add(f"<h{level}>{escape(text)}</h{level}>")
        if about:
            self.add(f'<p class="about">{escape(about)}</p>')

    def plot(self, figure: Any, name: str) -> None:
        """Add a plot.

        Args:
            figure: Of the plotting library.
            name: What it shows, for people who cannot see it.
        """
        number = next(self._plots)
        # Inside a script element nothing is escaped, and only "<" could end it.
        data = figure.to_json().replace("<", "\\u003c")
        self.add(
            f'<div class="scroll"><div class="plot" id="plot{number}" role="img" aria-label="{escape(name)}" '
            f'style="height:{figure.layout.height}px"></div></div>'
            f'<script type="application/json" data-plot="plot{number}">{data}</script>'
        )

    def numbers(
        self, rows: Iterable[Sequence[Any]], heads: Sequence[str], title: str = "The numbers"
    ) -> None:
        """Add a table that is folded in."""
        self.add(f"<details><summary>{escape(title)}</summary>{table(rows, heads)}</details>")

    def text(self) -> str:
        """Return all pieces."""
        return "\n".join(self._parts)


def table(rows: Iterable[Sequence[Any]], heads: Sequence[str]) -> str:
    """Return a table; None shows as a dash, and a cell that is `Shaded` gets a background."""
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def breakable(text: str) -> str:
    """Return a text as HTML, in which the browser may break a long setting after its commas."""
    return re.sub(r",(?=[^\s\d])", ",<wbr>", escape(text))


@dataclass(frozen=True, slots=True)
class Shaded:
    """A cell whose background says how much was lost.

    Attributes:
        text: What it says.
        strength: From -1, lost, to 1, gained; what is beyond counts as these.
    """

    text: str
    strength: float


def _cell(value: Any) -> str:
    shown = value.text if isinstance(value, Shaded) else value
    text = "–" if shown is None else breakable(str(shown))
    number = ' class="n"' if text[:1].isdigit() or text[:1] in "+-−" else ""
    if isinstance(value, Shaded) and value.strength:
        color = "var(--lost)" if value.strength < 0 else "var(--gained)"
        share = round(60 * min(1.0, abs(value.strength)))
        return f'<td{number} style="background:color-mix(in srgb, {color} {share}%, transparent)">{text}</td>'
    return f"<td{number}>{text}</td>"
