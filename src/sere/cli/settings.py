"""What can be written for ``--setting``, for the help of the commands that take it."""

from __future__ import annotations

from textwrap import indent


def list_policies() -> str:
    """Return every policy with its options and what it does, for the end of a command's help."""
    # Here, because the rules need torch, which takes a second to load.
    from sere.policies.spec import describe_policies

    return f"\npolicies and their options:\n{indent(describe_policies(), '  ')}\n"
