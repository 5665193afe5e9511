"""Cells of what a timed case counted, for the tables of ``sere bench``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def experts_cell(experts: Mapping[str, Any] | None) -> str | None:
    """Return the distinct experts per layer and step before and after re-routing.

    None where no step was counted, as with one row by default, or in a replay.
    """
    if experts is None or experts["distinct_before"] is None:
        return None
    return f"{experts['distinct_before']:.1f} > {experts['distinct_after']:.1f}"


def pairs_cell(found: Mapping[str, Any] | None) -> str | None:
    """Return the share of the slots that flattened runs of layers computed; None if none was."""
    return None if found is None or not found["slots"] else f"{100 * found['pairs'] / found['slots']:.0f} %"
