"""The command line: one module a subcommand; only this layer prints or exits.

Each subcommand is a module with ``add(subparsers)``, which declares its arguments, and
``run(args) -> int``, which returns the exit code: 0 done, 1 a check failed, 2 wrong use. An error that nobody
foresaw is 1 too, behind its traceback; 128 and its number is a signal that ended the command (Ctrl-C: 130).
Heavy packages are imported inside ``run``, so that ``sere --help`` stays quick.
"""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence

from sere.cli.parser import build_parser
from sere.errors import SereError
from sere.interrupts import Watch, notes_of

DONE, CHECK_FAILED, WRONG_USE = 0, 1, 2
UNFORESEEN = CHECK_FAILED

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
    watch = Watch()
    if argv is None:
        # Asked to end, leave as from an error: what was started is ended, what lies about is removed.
        watch.start()
    code = _run(args, watch)
    watch.done(code)
    return code


def _run(args: Namespace, watch: Watch) -> int:
    try:
        code = int(args.run(args))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader went away (`| head`): not an error; keep Python from complaining at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except BaseException as error:
        if watch.number is None and not isinstance(error, Exception | KeyboardInterrupt):
            raise
        return _report(error, args, watch)


def _report(error: BaseException, args: Namespace, watch: Watch) -> int:
    """Print one line for ``error`` and return the exit code.

    The traceback comes first with ``--debug``, and where nobody foresaw the error.
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
        return WRONG_USE
    what = " ".join(f"unexpected {type(error).__name__}: {error}".split())
    report = "please report the lines above, the command, and what 'sere doctor --json' prints"
    print(f"sere: error: {'; '.join([what, report, *notes_of(error)])}", file=sys.stderr)
    return UNFORESEEN


def explain(error: BaseException) -> str | None:
    """Return the line that tells a user what went wrong and what to do, or None where nobody foresaw it."""
    if isinstance(error, SereError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.partition(".")[0]
        if package in _EXTRAS:
            return f"{package} is not installed; it comes with pip install 'sere[{_EXTRAS[package]}]'"
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}" if error.strerror else str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's, of a GPU
        return f"not enough memory ({error}); use a smaller batch size, or calibrate with --low-memory"
    return None
