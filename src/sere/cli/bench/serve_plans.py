"""What the arguments of ``sere bench serve`` say that engines and servers share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sere.cli.settings import DEFAULT

BATCH_SIZES = (8, 16, 32)


def plan_values(args: argparse.Namespace, engine_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the plans of engines and of servers both hold."""
    from sere.cli.progress_bar import bar
    from sere.policies.spec import parse_specs

    return {
        "settings": parse_specs(args.setting or [DEFAULT]), "prompt": args.prompt,
        "steps": args.steps, "rounds": args.rounds, "compiled": args.compile, "seed": args.seed,
        "engine_options": engine_options, "progress": bar,
    }  # fmt: skip
