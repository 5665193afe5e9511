"""``sere list``: the routing rules that ``--setting`` takes, and the metrics that ``--metric`` takes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sere.cli.output import add_json_flag, emit, table
from sere.cli.parser import add_command

_DETAILS = """A setting is the name of a rule, then its options: --setting
sere:active_experts=32,cap=true. sere alone has all defaults, and sere:paper,select_top_k=2 is the published
method. active_experts is a number, a share of all experts (0.25), auto, or points ROWS-NUMBER for steps of
so many rows, with a straight line between them: 1-8/8-24/32-36. sere.apply, vLLM's additional_config and
JSON files take the options of sere under the same names."""


def add(subparsers: Any) -> None:
    """Add ``sere list`` with its subcommands."""
    summary = "List the routing rules with their options, or the similarity metrics."
    examples = "  sere list policies\n  sere list metrics"
    parser = add_command(subparsers, "list", summary, examples=examples)
    commands = parser.add_subparsers(title="what to list", metavar="WHAT", required=True)
    summary = "List the routing rules and their options, for --setting."
    examples = "  sere list policies"
    policies = add_command(commands, "policies", summary, _policies, details=_DETAILS, examples=examples)
    summary = "List the similarity metrics, for --metric."
    metrics = add_command(commands, "metrics", summary, _metrics, examples="  sere list metrics")
    for command in (policies, metrics):
        add_json_flag(command)


def _policies(args: argparse.Namespace) -> int:
    from sere.policies.options import options_of
    from sere.policies.spec import POLICIES, summarize

    value = {
        "policies": [
            {
                "name": name,
                "summary": summarize(name),
                "options": [
                    {"name": option.name, "value": option.form, "required": option.required}
                    for option in sorted(options_of(kind).values(), key=lambda option: not option.required)
                ],
            }
            for name, kind in POLICIES.items()
        ]
    }
    emit(args, value, _render_policies)
    return 0


def _render_policies(value: Mapping[str, Any]) -> str:
    """Return one paragraph per rule: its name, what it does, and one line per option."""
    paragraphs = []
    for policy in value["policies"]:
        lines = [policy["name"], f"    {policy['summary']}"]
        for option in policy["options"]:
            needed = " (required)" if option["required"] else ""
            lines.append(f"    {_written(option)}{needed}")
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def _written(option: Mapping[str, Any]) -> str:
    """Return an option as it is typed; a preset stands alone."""
    return str(option["value"]) if option["name"] == "preset" else f"{option['name']}={option['value']}"


def _metrics(args: argparse.Namespace) -> int:
    from sere.similarity import METRICS

    value = {"metrics": [{"name": name, "summary": found.summary} for name, found in METRICS.items()]}
    emit(args, value, _render_metrics)
    return 0


def _render_metrics(value: Mapping[str, Any]) -> str:
    return table(
        [[metric["name"], metric["summary"]] for metric in value["metrics"]], ["metric", "similarity"]
    )
