"""The command line: one module per subcommand; only this layer prints or exits.

Each subcommand is a module with ``add(subparsers)``, which declares its arguments, and ``run(args) -> int``,
which returns the exit code. Results go to stdout; progress, warnings and notes to stderr. Heavy packages are
imported inside ``run``, so that ``sere --help`` stays quick.

Exit codes: 0 done; 1 a check failed, or an error ended the command (an unexpected one prints its traceback);
2 wrong use; 130 interrupted by Ctrl-C, as any signal that ends a command gives 128 and its number.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from sere.cli.explain import DONE, FAILED, code_of, explain
from sere.cli.output import ReaderLeft, say, settle, show
from sere.cli.parser import build_parser
from sere.interrupts import Watch, notes_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes one line on stderr.

    Args:
        argv: The arguments after the program's name; those of the process if None.
    """
    if argv is None:
        _prepare_streams()
    watch = Watch()
    code = _run(argv, watch)
    settle()
    watch.done(code)
    return code


def _prepare_streams() -> None:
    """Make both streams take any text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # was closed by who started us; print would turn to the other one
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for good
        elif isinstance(stream, io.TextIOWrapper):
            # What a terminal or file cannot show, such as ρ in ASCII, is no reason to fail.
            stream.reconfigure(errors="backslashreplace")


def _run(argv: Sequence[str] | None, watch: Watch) -> int:
    args = Namespace(debug=False)
    try:
        try:
            args = build_parser().parse_args(argv)
        except SystemExit as stop:  # argparse: --help and --version leave with 0, wrong use with 2
            return int(stop.code or 0)
        if argv is None:
            # Takes seconds, in which nothing has begun: Ctrl-C still ends the process at once.
            import torch  # noqa: F401

            # From here on, a request to end unwinds the command: what it started is ended and removed.
            watch.start()
        code = int(args.run(args))
        show("", end="")  # whatever else was printed
        return code
    except ReaderLeft:
        return DONE
    except BaseException as error:
        if watch.number is None and not isinstance(error, Exception | KeyboardInterrupt):
            raise
        return _report(error, args, watch)


def _report(error: BaseException, args: Namespace, watch: Watch) -> int:
    """Print one line for ``error`` and return the exit code.

    The traceback comes first with ``--debug``, and if the error was not expected.
    """
    ended = watch.number is not None or isinstance(error, KeyboardInterrupt)
    line = None if ended else explain(error)
    if args.debug or not (ended or line):
        say("".join(traceback.format_exception(error)).rstrip())
    if ended:
        say(f"\n{watch.line(notes_of(error))}")
        return watch.code()
    if line is not None:
        say(f"sere: error: {' '.join(line.split())}")
        return code_of(error)
    what = " ".join(f"unexpected {type(error).__name__}: {error}".split())
    report = "please report the lines above, the command, and what 'sere doctor --json' prints"
    say(f"sere: error: {'; '.join([what, report, *notes_of(error)])}")
    return FAILED
