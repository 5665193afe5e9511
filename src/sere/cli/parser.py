"""The frame of the command line: the parser, its subcommands and how their help looks."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

from sere.cli.output import say, show
from sere.errors import did_you_mean, name_some

COMMANDS = (
    "calibrate", "table", "tune", "generate", "eval", "lm-eval", "bench", "report", "list", "demo", "top",
    "doctor",
)  # fmt: skip

_EXAMPLES = """examples:
  sere demo                                    calibrate, decode and compare on the bundled model
  sere calibrate MODEL                         measure how well its experts replace each other
  sere eval MODEL --prompts prompts.txt        what re-routing changes, with the default settings
  sere tune MODEL --prompts prompts.txt        the fewest experts for a loss that you accept
  sere doctor MODEL
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Fills paragraphs, keeps those with indented lines, leaves room beside the longest command's name."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **options)
        # argparse forgets the indent of subcommands when it looks for the longest name.
        self._action_max_length = 4 + max(map(len, COMMANDS))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Fit each paragraph of a description to the terminal, lists and examples aside."""
        return "\n\n".join(
            part
            if "\n " in part
            else textwrap.fill(part, width, initial_indent=indent, subsequent_indent=indent)
            for part in text.split("\n\n")
        )


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and whose help keeps its line breaks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)
        self._commands: tuple[str, ...] = ()

    def fall_back(self, subparsers: Any, command: str) -> None:
        """Read arguments that name none of the subcommands as those of ``command``.

        Args:
            subparsers: What ``add_subparsers`` of this parser returned, with all subcommands added.
            command: One of the subcommands. A file with the name of one is given as ``./name``.
        """
        self._commands = (command, *subparsers.choices)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments as `argparse` does, with the subcommand that is fallen back on put first."""
        first = next((word for word in args or () if word != "--debug"), None)
        if self._commands and first not in (*self._commands, "-h", "--help"):
            args = [self._commands[0], *(args or ())]
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:  # here and not in the program's parser, which knows none of the command's options
            self.error(f"unrecognized arguments: {name_some(unknown, separator=' ')}{self._nearest(unknown)}")
        return found, unknown

    def _nearest(self, unknown: Sequence[str]) -> str:
        """Return a hint for the first option that is not known, if its name is close to one that is."""
        word = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
        close = get_close_matches(word, self._option_string_actions, n=1, cutoff=0.7)
        return f"; did you mean {close[0]}?" if close else ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a word that is not one of the choices, and suggest the nearest one."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}{did_you_mean(str(value), action.choices)}"
            )

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help to stdout and errors to stderr as everything else is."""
        if file is sys.stdout:
            show(message, end="")
        else:
            say(message.removesuffix("\n"))

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2 and one line that names the command whose help to read."""
        self.exit(2, f"sere: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Looks for the version when it is asked for: that reads the installed packages."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from sere import __version__

        show(f"sere {__version__}")
        parser.exit()


def build_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="sere",
        description="Re-route Mixture-of-Experts decoding to fewer, similar experts.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"sere.cli.{name.replace('-', '_')}").add(subparsers)
    return parser


def add_command(
    subparsers: Any,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int] | None = None,
    *,
    details: str = "",
    examples: str = "",
    **options: Any,
) -> Parser:
    """Add a subcommand and return its parser.

    Args:
        subparsers: What ``add(subparsers)`` was given.
        name: The word on the command line.
        summary: One line, shown in the help of the program or command above and on top of its own help.
        run: Runs it and returns the exit code; None for a command that only holds further ones.
        details: Further lines of the command's help.
        examples: Lines that can be pasted, shown at its end.
        **options: Further arguments of its parser.
    """
    epilog = f"examples:\n{examples.strip(chr(10))}\n" if examples else None
    parser: Parser = subparsers.add_parser(
        name, help=summary, description=f"{summary}\n\n{details}".strip(), epilog=epilog, **options
    )
    # SUPPRESS: a default here would overwrite a --debug given before the command's name.
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def add_setting_argument(parser: argparse.ArgumentParser, default: Sequence[str], *, done: str) -> None:
    """Add ``--setting`` to a command that compares several.

    Args:
        parser: The command's parser.
        default: The settings if none is given.
        done: What is done with them and with ``off``, for the help.
    """
    parser.add_argument(
        "--setting", action="append", metavar="SETTING",
        help=f"a routing rule, see sere list policies; repeatable; off is always {done} "
        f"(default: {' '.join(default)})",
    )  # fmt: skip
