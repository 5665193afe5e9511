"""Ctrl-C while the command line is still being imported: one line and exit code 130.

Imported first of all, so it imports next to nothing itself.
"""

import atexit
import os
import signal
import sys


def watch_start() -> None:
    """On Ctrl-C before a command has begun, end at once with one line; ignore it at the very end.

    Importing takes seconds, in which nothing has been started that would have to be ended. Nothing is changed
    if this is not the command line's own process, or if Ctrl-C is ignored or has another handler.
    """
    if is_command() and take_over(signal.SIGINT, end_at_once):
        # Registered first, so called last: after it Python shuts down, without any handler of ours.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def is_command() -> bool:
    """Whether this process was started as ``sere`` or ``python -m sere``, and is not a child of it."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        return False  # a child has its parent's arguments
    if sys.argv[:1] == ["-m"]:  # its value while the package that is to be run is being imported
        _, _, after = " ".join(sys.orig_argv).partition(" -m ")
        return after.partition(" ")[0] == "sere"
    return bool(sys.argv) and os.path.basename(sys.argv[0]) in ("sere", "sere.exe")  # noqa: PTH119 - see above


def take_over(number: int, handler: object) -> bool:
    """Handle a signal from now on, unless it is ignored or already has another handler.

    Returns:
        Whether it is handled; it never is outside the main thread.
    """
    if signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler, end_at_once):
        return False
    try:
        signal.signal(number, handler)  # type: ignore[arg-type]
    except ValueError:  # not the main thread
        return False
    return True


def end_at_once(_number: int, _frame: object) -> None:
    """Print one line and end the process, whatever it is doing."""
    os.write(2, b"\nsere: interrupted\n")
    os._exit(128 + signal.SIGINT)
