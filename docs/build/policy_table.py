"""The routing rules as a list, from the registry."""

from __future__ import annotations

import textwrap

from sere.policies.spec import POLICIES, needed_form, summarize


def policies() -> str:
    """Return what each rule does and where it comes from, an item per rule, wrapped."""
    items = [f"- `{needed_form(name)}` ({kind.source}). {summarize(name)}" for name, kind in POLICIES.items()]
    return "\n".join(textwrap.fill(item, width=102, subsequent_indent="  ") for item in items)
