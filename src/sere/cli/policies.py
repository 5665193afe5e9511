"""``sere policies``: the routing rules that ``--setting`` takes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sere.cli.output import add_json_flag, emit
from sere.cli.parser import add_command

_DETAILS = """A setting is the name of a rule, then its options: --setting
sere:select_top_k=2,min_active=32. sere.apply, vLLM's additional_config and JSON files take the options
of sere under the same names."""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    summary = "List the routing rules and their options, for --setting."
    parser = add_command(subparsers, "policies", summary, run, details=_DETAILS, examples="  sere policies")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print every rule."""
    from sere.policies.options import options_of
    from sere.policies.spec import POLICIES

    value = {
        "policies": [
            {
                "name": name,
                "summary": " ".join((kind.__doc__ or "").partition("\n\n")[0].split()).replace("``", ""),
                "options": [
                    {"name": option.name, "value": option.form, "required": option.required}
                    for option in sorted(options_of(kind).values(), key=lambda option: not option.required)
                ],
            }
            for name, kind in POLICIES.items()
        ]
    }
    emit(args, value, render)
    return 0


def render(value: Mapping[str, Any]) -> str:
    """Return one paragraph per rule: its name, what it does, and one line per option."""
    paragraphs = []
    for policy in value["policies"]:
        lines = [policy["name"], f"    {policy['summary']}"]
        for option in policy["options"]:
            needed = " (required)" if option["required"] else ""
            lines.append(f"    {option['name']}={option['value']}{needed}")
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)
