"""What a report's page draws and tabulates, read back from its text."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any


def figures(text: str) -> dict[str, Any]:
    """Return the data of each plot, by what the page says that it shows; no two may show the same."""
    names = dict(re.findall(r'id="(plot\d+)" role="img" aria-label="([^"]*)"', text))
    data = dict(re.findall(r'data-plot="(\w+)">(.*?)</script>', text))
    found = {unescape(names[number]): json.loads(figure) for number, figure in data.items()}
    assert len(found) == len(names) == len(data)
    return found


def on_axis(figure: Any, axis: str) -> dict[str, Any]:
    """Return the lines of one plot of a figure, by name.

    Args:
        figure: As `figures` returns it.
        axis: The plot's axis to the right, as the library counts: ``"x"``, ``"x2"``, ...
    """
    return {trace["name"]: trace for trace in figure["data"] if trace["xaxis"] == axis}


def tables(text: str, heading: str) -> dict[str, list[list[tuple[str, str]]]]:
    """Return the folded tables below a heading: by summary, rows of cells, each with its text and background.

    Args:
        text: The page.
        heading: The heading; the tables up to the next one are returned.
    """
    part = re.split(r"<h[23]>", text.partition(f">{heading}</h3>")[2])[0]
    return {
        unescape(summary): [
            [
                (
                    unescape(cell.replace("<wbr>", "")),
                    unescape("".join(re.findall(r'style="background:([^"]*)"', options))),
                )
                for options, cell in re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row)
            ]
            for row in re.findall(r"<tr>(.*?)</tr>", rows)
        ]
        for summary, rows in re.findall(
            r"<details[^>]*><summary>(.*?)</summary>(.*?)</details>", part, re.DOTALL
        )
    }
