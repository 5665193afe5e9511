"""Ctrl-C: one line and exit code 130 at any time, and a note on what the same command will continue."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from sere.startup import take_over

# What asks a process to end; not all of them are known everywhere.
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")


class Watch:
    """Turns signals that ask the process to end into exceptions, which unwind what was begun.

    Ctrl-C is a `KeyboardInterrupt`, the others a `SystemExit`. Code in between may turn them into
    other errors (imports do), so only ``number`` is certain.

    Attributes:
        number: The last such signal, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._watching = False

    def start(self) -> None:
        """Take over the signals, except those that are ignored or have another handler."""
        for name in _ENDING:
            number = getattr(signal, name, None)
            if number is not None:
                take_over(number, self._came)
        self._watching = signal.getsignal(signal.SIGINT) == self._came

    def done(self, code: int) -> None:
        """Now that the command is done, let Ctrl-C end the process at once with the command's exit code."""
        if not self._watching:
            return
        signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(code))
        # Python keeps a mark of a KeyboardInterrupt that passed code run from a string, as some imports do,
        # and would kill itself by the signal in the end; running such code again clears it.
        exec("")

    def line(self, notes: list[str]) -> str:
        """Return one line: what ended the command, and what it leaves."""
        interrupted = self.number in (None, signal.SIGINT)
        what = "interrupted" if interrupted else f"ended by {signal.Signals(self.number or 0).name}"
        return "; ".join([f"sere: {what}", *notes])

    def code(self) -> int:
        """Return the exit code that says which signal it was."""
        return 128 + (self.number or signal.SIGINT)

    def _came(self, number: int, _frame: object) -> NoReturn:
        self.number = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


@contextmanager
def going_on(described: Callable[[], str | None]) -> Iterator[None]:
    """Add a note to the exception that ends the block early: what of its work is kept.

    Args:
        described: Says, once the block has ended early, what the same command finds done; None for nothing.
    """
    try:
        yield
    except BaseException as error:
        if (note := described()) is not None:
            error.add_note(note)
        raise


def notes_of(error: BaseException | None) -> list[str]:
    """Return the notes of an error and of its causes, each once."""
    notes: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        notes += getattr(error, "__notes__", [])
        error = error.__cause__ or error.__context__
    return list(dict.fromkeys(notes))
