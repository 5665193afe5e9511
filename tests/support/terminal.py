"""A pseudo-terminal as a stream of this process, for tests of what a terminal shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.support.patience import HANGS_S

# What tells a terminal anything but text: colors, where to write, what to clear.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:[349]\d|10\d)(?:;\d+)*m")
# Variables that say another size than the terminal does.
_SIZES = ("COLUMNS", "LINES")
_TERM = "xterm-256color"


class Screen:
    """The other side of a pseudo-terminal.

    Attributes:
        raw: All that has been written; complete after the block of `on_terminal`.
    """

    def __init__(self, master: int) -> None:
        self.raw = ""
        self._master = master
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        try:
            # An error of input ends it: the other side was closed.
            while found := os.read(self._master, 65536):
                self.raw += found.decode(errors="replace")
        except OSError:
            return

    def join(self) -> None:
        """Wait until all is read; the other side must be closed."""
        self._reading.join(timeout=HANGS_S)

    @property
    def text(self) -> str:
        """What was written, without what controls a terminal."""
        return _CONTROL.sub("", self.raw)

    @property
    def lines(self) -> list[str]:
        """What stood on lines, whether or not it was written over later."""
        return [line for line in re.split(r"[\r\n]+", self.text) if line.strip()]

    @property
    def has_colors(self) -> bool:
        """Whether a color was asked for; bold and dim are none."""
        return _COLOR.search(self.raw) is not None


def _open(columns: int, rows: int) -> tuple[int, int]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return master, slave


def run_on_terminal(command: Sequence[str], columns: int, *, rows: int = 40) -> tuple[int, Screen]:
    """Run another process, all of whose streams are one terminal; return its exit code and the screen."""
    master, slave = _open(columns, rows)
    screen = Screen(master)
    unset = (*_SIZES, "NO_COLOR", "FORCE_COLOR")
    given = {name: value for name, value in os.environ.items() if name not in unset} | {"TERM": _TERM}
    try:
        run = subprocess.run(
            command, stdin=slave, stdout=slave, stderr=slave, env=given, check=False, timeout=HANGS_S
        )
    finally:
        os.close(slave)
        screen.join()
        os.close(master)
    return run.returncode, screen


@contextmanager
def on_terminal(
    monkeypatch: pytest.MonkeyPatch, name: str, columns: int, *, term: str = _TERM
) -> Iterator[Screen]:
    """Let a stream of this process be a terminal while the block runs.

    Args:
        monkeypatch: Of the test.
        name: ``"stdout"`` or ``"stderr"``.
        columns: How wide it is.
        term: The variable ``TERM``.
    """
    master, slave = _open(columns, 40)
    screen = Screen(master)
    try:
        with monkeypatch.context() as changed, os.fdopen(slave, "w", encoding="utf-8") as stream:
            changed.setattr(sys, name, stream)
            changed.setattr(sys, f"__{name}__", stream)
            changed.setenv("TERM", term)
            for variable in _SIZES:
                changed.delenv(variable, raising=False)
            yield screen
    finally:
        screen.join()
        os.close(master)
