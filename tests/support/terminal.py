"""A pseudo-terminal for a stream of this process or for a command, and what it shows of what is written."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.patience import HANGS_S

ROWS = 40
"""How many rows a terminal has here."""

_TERM = "xterm-256color"
# Variables that say another size than the terminal does, and those that ask for other colors.
_SIZES = ("COLUMNS", "LINES")
_COLORS = ("NO_COLOR", "FORCE_COLOR")
# What stays of a command after its end was asked for is killed.
_END_S = 60.0

# What tells a terminal anything but text: colors, where to write, what to clear.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_STYLE = re.compile(r"\x1b\[[\d;:]*m")
_COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:[349]\d|10\d)(?:;\d+)*m")
# Categories of characters without a width: controls, formats, marks, separators.
_NO_WIDTH = ("Cc", "Cf", "Me", "Mn", "Zl", "Zp")


class Screen:
    """A new pseudo-terminal, from the side of its user.

    Args:
        columns: How wide it is.

    Attributes:
        stream: The side of programs, for reading and writing.
    """

    def __init__(self, columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self._found: list[bytes] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        # An error of input ends it: nobody has the other side open any more.
        with suppress(OSError):
            while found := os.read(self._master, 65536):
                self._found.append(found)

    def type(self, text: str) -> None:
        """Type something, for whatever reads from the terminal."""
        os.write(self._master, text.encode())

    def join(self, seconds: float = HANGS_S) -> None:
        """Wait until nobody has the programs' side open any more and all is read, so long at most."""
        self._reading.join(seconds)

    def close(self) -> None:
        """Read the rest, and close both sides."""
        self.stream.close()
        self.join()
        os.close(self._master)

    @property
    def raw(self) -> str:
        """All that has been written so far; complete after `close`."""
        return b"".join(self._found).decode(errors="replace")

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


def screen_text(written: str, columns: int) -> str:
    """Return what a terminal shows in the end, with all that has scrolled off it.

    Lines break where the terminal ends, and what is written over is gone. Spaces at the ends of lines and
    empty lines around all are left out.

    Args:
        written: What a program wrote, with everything that controls the terminal.
        columns: How wide the terminal is.
    """
    import pyte  # here, because only those need it who look at what is left

    screen = pyte.HistoryScreen(columns, ROWS, history=sys.maxsize)
    pyte.Stream(screen).feed("".join(filter(_is_shown, written)))
    lines = [*screen.history.top, *(screen.buffer[row] for row in range(ROWS))]
    texts = ("".join(line[column].data for column in range(columns)).rstrip() for line in lines)
    return "\n".join(texts).strip("\n")


def _is_shown(character: str) -> bool:
    """Whether pyte can take a character: after one without a width that combines with none, it drops text."""
    return (
        character.isascii()
        or unicodedata.combining(character) > 0
        or unicodedata.category(character) not in _NO_WIDTH
    )


def without_colors(written: str) -> str:
    """Return what a program wrote, without its changes of color, which can be in the middle of a word."""
    return _STYLE.sub("", written)


def _hear_signals() -> None:
    """Take no notice of what this process ignores, as one does that was started in the background."""
    for heard in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(heard, signal.SIG_DFL)


class Session:
    """A command that runs on a terminal of its own, which all of its streams are, as if typed there.

    Args:
        line: What is typed.
        columns: How wide the terminal is.
        folder: Where it runs.
        environment: The variables that it sees.

    Attributes:
        screen: The terminal.
    """

    def __init__(self, line: str, columns: int, folder: Path, environment: Mapping[str, str]) -> None:
        given = {name: value for name, value in environment.items() if name not in (*_SIZES, *_COLORS)}
        self.screen = Screen(columns)
        stream = self.screen.stream
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", line], cwd=folder, env=given | {"TERM": _TERM},
                stdin=stream, stdout=stream, stderr=stream, start_new_session=True,
                preexec_fn=_hear_signals,
            )  # fmt: skip
        finally:
            stream.close()

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait until it has ended, so long at most, and return its exit code; None if it has not."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def interrupt(self) -> None:
        """End it as Ctrl-C does: every process that the line has started gets the signal."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)
        # The shell ends before a server that it runs, which has the terminal open until it has ended.
        self.screen.join(_END_S)
        # And the terminal is closed before the shell has quite ended.
        self.wait(_END_S)

    def end(self) -> None:
        """Kill what still runs, and read the rest of what was written."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.screen.close()


@contextmanager
def session(line: str, columns: int, folder: Path, environment: Mapping[str, str]) -> Iterator[Session]:
    """Run a command on a terminal of its own; what still runs at the end of the block is killed."""
    running = Session(line, columns, folder, environment)
    try:
        yield running
    finally:
        running.end()


def run_on_terminal(command: Sequence[str], columns: int) -> tuple[int, Screen]:
    """Run a command here on a terminal of its own; return its exit code and the terminal."""
    with session(shlex.join(command), columns, Path.cwd(), os.environ) as running:
        code = running.wait(HANGS_S)
    assert code is not None, f"{shlex.join(command)}: expected it to end within {HANGS_S} s"
    return code, running.screen


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
    with closing(Screen(columns)) as screen, monkeypatch.context() as changed:
        changed.setattr(sys, name, screen.stream)
        changed.setattr(sys, f"__{name}__", screen.stream)
        changed.setenv("TERM", term)
        for variable in _SIZES:
            changed.delenv(variable, raising=False)
        yield screen
