"""Arguments that ``sere bench run`` and ``sere bench serve`` share."""

from __future__ import annotations

import argparse

from sere.cli.numbers import whole


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is timed: ``MODEL``, or ``--preset`` and its ``--layers``."""
    from sere.bench.shapes import SHAPES

    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a checkpoint folder, a hub name, or 'bundled'"
    )
    parser.add_argument("--preset", metavar="NAME", help=f"instead of MODEL: {', '.join(SHAPES)}")
    parser.add_argument("--layers", type=whole(1), metavar="L", help="layers of the preset (default: 4)")
