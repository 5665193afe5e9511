"""The routing rules as a table, from the registry."""

from __future__ import annotations

from cells import table
from sere.policies.spec import POLICIES, needed_form, summary


def policies() -> str:
    """Return what each rule does and where it comes from, a row per rule."""
    rows = [[f"`{needed_form(name)}`", summary(name), kind.source] for name, kind in POLICIES.items()]
    return table(rows, ["setting", "what it does", "source"])
