"""What ``sere doctor`` looked at, and what it found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: Which group it belongs to.
        name: What was looked at.
        state: ``ok``, ``missing`` (nothing wrong), ``untested`` (may work, but nobody tried) or ``BROKEN``.
        detail: What was found, or what to do.
    """

    part: str
    name: str
    state: str
    detail: str
