"""Arguments that ``sere bench run`` and ``sere bench serve`` share."""

from __future__ import annotations

import argparse

from sere.cli.numbers import whole
from sere.errors import ConfigError

_LAYERS = 4


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is timed: ``MODEL``, or ``--preset`` with its ``--layers`` or ``--depths``."""
    from sere.bench.shapes import SHAPES

    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a checkpoint folder, a hub name, or 'bundled'"
    )
    parser.add_argument("--preset", metavar="NAME", help=f"instead of MODEL: {', '.join(SHAPES)}")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument(
        "--layers", type=whole(1), metavar="L", help=f"layers of the preset (default: {_LAYERS})"
    )
    depth.add_argument(
        "--depths", type=whole(1), nargs=2, metavar="L",
        help="time the preset with two numbers of layers, and report the time per layer and what it gives "
        "for the complete model",
    )  # fmt: skip


def depths_of(args: argparse.Namespace) -> list[int]:
    """Return the numbers of layers of a preset, one or two, the smaller first.

    Raises:
        ConfigError: Neither MODEL nor a preset is given, or both, or layers of a MODEL.
        InputError: The preset is unknown, or has not so many layers.
    """
    from sere.bench.shapes import SHAPES, shape_config

    if (args.model is None) == (args.preset is None):
        raise ConfigError("bench: expected either MODEL or --preset, e.g. --preset qwen3-30b-a3b")
    given = args.depths if args.depths is not None else args.layers
    if args.model is not None:
        if given is not None:
            raise ConfigError(
                "--layers, --depths: only a --preset can have fewer layers; leave them out for a MODEL"
            )
        return []
    if args.depths is not None and args.depths[0] == args.depths[1]:
        raise ConfigError(f"--depths: expected two different numbers, got {args.depths[0]} twice")
    found = args.depths or [
        args.layers or min(_LAYERS, SHAPES[args.preset].layers if args.preset in SHAPES else 1)
    ]
    for layers in found:
        shape_config(args.preset, layers=layers)
    return sorted(found)
