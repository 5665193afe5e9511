"""The command line: one module a subcommand; only this layer prints or exits.

Each subcommand is a module with ``add(subparsers)``, which declares its arguments, and
``run(args) -> int``, which returns the exit code: 0 done, 1 a check failed, 2 wrong use.
Heavy packages are imported inside ``run``, so that ``sere --help`` stays quick.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence

from sere.cli.parser import build_parser
from sere.errors import SereError

DONE, CHECK_FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

_EXTRAS = {
    "transformers": "transformers",
    "tqdm": "transformers",
    "psutil": "transformers",
    "numba": "cpu",
    "pyarrow": "data",
    "datasets": "datasets",
    "matplotlib": "plot",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes one line on stderr.

    Args:
        argv: The arguments after the program's name; those of the process if None.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse: --help and --version leave with 0, wrong use with 2
        return int(stop.code or 0)
    if argv is None:
        # Asked to end, leave as from an error: what was started is ended, what lies about is removed.
        for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):
            signal.signal(getattr(signal, name), _leave)
    try:
        return int(args.run(args))
    except BrokenPipeError:
        # The reader went away (`| head`): not an error; keep Python from complaining at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, args)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _report(error: BaseException, args: Namespace) -> int:
    """Print one line for ``error`` (with ``--debug``, its traceback first) and return the exit code."""
    if args.debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        print("\nsere: interrupted", file=sys.stderr)
        return INTERRUPTED
    print(f"sere: error: {' '.join(explain(error).split())}", file=sys.stderr)
    return WRONG_USE


def explain(error: BaseException) -> str:
    """Return the line that tells a user what went wrong and what to do."""
    if isinstance(error, SereError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.partition(".")[0]
        if package in _EXTRAS:
            return f"{package} is not installed; it comes with pip install 'sere[{_EXTRAS[package]}]'"
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}" if error.strerror else str(error)
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)"
