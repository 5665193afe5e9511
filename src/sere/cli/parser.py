"""The frame of the command line: the parser, its subcommands and how their help looks."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Any, NoReturn

from sere.provenance import installed_version

COMMANDS = ("calibrate", "table", "eval", "bench", "bench serve", "generate", "demo", "doctor")

_EXAMPLES = """examples:
  sere demo                                    the whole path on the bundled model
  sere calibrate MODEL --texts notes.txt --metric projection --out table.safetensors
  sere eval MODEL --table table.safetensors --setting sere:S=2,min_active=32,scale=true --prompts prompts.txt
  sere doctor --model MODEL --table table.safetensors
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks, and leaves room for the longest command's name beside its help."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **options)
        # argparse forgets the indent of subcommands when it looks for the longest name.
        self._action_max_length = 4 + max(map(len, COMMANDS))


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose help keeps its line breaks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read the first two words ``bench serve`` as one: argparse knows commands of one word."""
        given = list(sys.argv[1:] if args is None else args)
        if self.prog == "sere":
            # Before the command stand flags alone, which take no value.
            place = next((at for at, word in enumerate(given) if not word.startswith("-")), len(given))
            if given[place : place + 2] == ["bench", "serve"]:
                given[place : place + 2] = ["bench serve"]
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2 and one line that names the command whose help to read."""
        self.exit(2, f"sere: error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="sere",
        description="Re-route Mixture-of-Experts decoding to fewer, similar experts.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "--version", action="version", version=f"sere {installed_version('sere') or 'unknown'}"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"sere.cli.{name.replace(' ', '_')}")
        module.add(subparsers)
        subparsers.choices[name].set_defaults(run=module.run)
        _add_debug(subparsers.choices[name])
    return parser


def add_command(subparsers: Any, name: str, summary: str, *, details: str = "", examples: str = "") -> Parser:
    """Add a subcommand and return its parser.

    Args:
        subparsers: What ``add(subparsers)`` was given.
        name: The word on the command line.
        summary: One line, shown in ``sere --help`` and on top of the command's own help.
        details: Further lines of the command's help.
        examples: Lines that can be pasted, shown at its end.
    """
    epilog = f"examples:\n{examples.strip(chr(10))}\n" if examples else None
    parser: Parser = subparsers.add_parser(
        name, help=summary, description=f"{summary}\n\n{details}".strip(), epilog=epilog
    )
    return parser


def _add_debug(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: a default here would overwrite a --debug given before the command's name.
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
