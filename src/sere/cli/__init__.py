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

from sere.cli.explain import DONE, FAILED, code_of, explain
from sere.cli.parser import build_parser
from sere.interrupts import Watch, notes_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes one line on stderr.

    Args:
        argv: The arguments after the program's name; those of the process if None.
    """
    if argv is None and isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal or file cannot show, such as ρ in ASCII, is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse: --help and --version leave with 0, wrong use with 2
        return _flushed(int(stop.code or 0))
    watch = Watch()
    code = _run(args, watch, in_process=argv is not None)
    watch.done(code)
    return code


def _run(args: Namespace, watch: Watch, *, in_process: bool) -> int:
    try:
        if not in_process:
            # Takes seconds, in which nothing has begun: Ctrl-C still ends the process at once.
            import torch  # noqa: F401

            # From here on, a request to end unwinds the command: what it started is ended and removed.
            watch.start()
        return _flushed(int(args.run(args)))
    except BrokenPipeError:
        return _reader_left()
    except BaseException as error:
        if watch.number is None and not isinstance(error, Exception | KeyboardInterrupt):
            raise
        return _report(error, args, watch)


def _flushed(code: int) -> int:
    """Write out what stdout still holds and return the exit code."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        return _reader_left()
    return code


def _reader_left() -> int:
    """End quietly where nobody reads on (`| head`), and keep Python from complaining at shutdown."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _report(error: BaseException, args: Namespace, watch: Watch) -> int:
    """Print one line for ``error`` and return the exit code.

    The traceback comes first with ``--debug``, and if the error was not expected.
    """
    ended = watch.number is not None or isinstance(error, KeyboardInterrupt)
    line = None if ended else explain(error)
    if args.debug or not (ended or line):
        traceback.print_exception(error)
    if ended:
        print(f"\n{watch.line(notes_of(error))}", file=sys.stderr)
        return watch.code()
    if line is not None:
        print(f"sere: error: {' '.join(line.split())}", file=sys.stderr)
        return code_of(error)
    what = " ".join(f"unexpected {type(error).__name__}: {error}".split())
    report = "please report the lines above, the command, and what 'sere doctor --json' prints"
    print(f"sere: error: {'; '.join([what, report, *notes_of(error)])}", file=sys.stderr)
    return FAILED
