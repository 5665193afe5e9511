"""A pseudo-terminal of a given width: run a command on it, and return the text that is left on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROWS = 40
# Variables that say another size than the terminal does, or ask for other colors.
_UNSET = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
# What stays of a session after its end was asked for is killed.
_END_S = 60.0

_COLOR = re.compile(r"\x1b\[[\d;:]*m")
_PARTS = re.compile(
    r"\x1b\[(?P<numbers>[0-?]*)[ -/]*(?P<command>[@-~])"
    r"|\x1b\].*?(?:\x07|\x1b\\)"  # a title
    r"|\x1b[ -/]*[0-~]"
    r"|(?P<control>[\x00-\x1f\x7f])"
    r"|(?P<text>[^\x00-\x1f\x7f]+)",
    re.DOTALL,
)


class Screen:
    """What a terminal shows, with all that has scrolled off it.

    Lines break where the terminal ends, and what is written over is gone. Every character takes one column.

    Args:
        columns: How wide it is.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._lines: list[list[str]] = [[]]
        self._row = self._column = 0

    @property
    def text(self) -> str:
        """All lines, without spaces at their ends and without empty lines around them."""
        lines = ("".join(line).rstrip() for line in self._lines)
        return "\n".join(lines).strip("\n")

    def write(self, text: str) -> None:
        """Show what a program writes: characters, and what controls where they go."""
        for part in _PARTS.finditer(text):
            if part["text"]:
                for character in part["text"]:
                    self._put(character)
            elif part["control"]:
                self._control(part["control"])
            elif part["command"]:
                self._command(part["command"], [int(one or 0) for one in _numbers(part["numbers"])])

    def _put(self, character: str) -> None:
        if self._column == self._columns:
            self._go(self._row + 1, 0)
        line = self._lines[self._row]
        line.extend(" " * (self._column + 1 - len(line)))
        line[self._column] = character
        self._column += 1

    def _control(self, character: str) -> None:
        if character == "\n":
            self._go(self._row + 1, self._column)
        elif character == "\r":
            self._column = 0
        elif character == "\b":
            self._column = max(0, self._column - 1)
        elif character == "\t":
            self._column = min(self._columns - 1, (self._column // 8 + 1) * 8)

    def _command(self, command: str, numbers: list[int]) -> None:
        first, second = [*numbers, 0, 0][:2]
        by = max(1, first)
        top = max(0, len(self._lines) - ROWS)
        if command in "AF":
            self._go(max(top, self._row - by), self._column if command == "A" else 0)
        elif command in "BE":
            self._go(min(top + ROWS - 1, self._row + by), self._column if command == "B" else 0)
        elif command == "C":
            self._column = min(self._columns - 1, self._column + by)
        elif command == "D":
            self._column = max(0, self._column - by)
        elif command == "G":
            self._column = min(self._columns, by) - 1
        elif command in "Hf":
            self._go(top + min(ROWS, by) - 1, min(self._columns, max(1, second)) - 1)
        elif command == "K":
            self._erase(first)
        elif command == "J":
            self._erase(first)
            below, above = range(self._row + 1, len(self._lines)), range(top, self._row)
            for row in (*below, *above) if first >= 2 else (above if first == 1 else below):
                self._lines[row] = []

    def _go(self, row: int, column: int) -> None:
        self._lines.extend([] for _ in range(row + 1 - len(self._lines)))
        self._row, self._column = row, column

    def _erase(self, what: int) -> None:
        """Erase of the line: 0 what follows, 1 what is before and here, 2 all."""
        line = self._lines[self._row]
        if what == 1:
            end = min(len(line), self._column + 1)
            line[:end] = " " * end
        else:
            del line[self._column if what == 0 else 0 :]


def _numbers(text: str) -> list[str]:
    return [one for one in re.split(r"[;:]", text.lstrip("<=>?")) if one.isdigit() or not one]


def screen_text(written: str, columns: int) -> str:
    """Return what a terminal shows in the end."""
    screen = Screen(columns)
    screen.write(written)
    return screen.text


def without_colors(written: str) -> str:
    """Return what a program wrote, without its changes of color, which can be in the middle of a word."""
    return _COLOR.sub("", written)


class Session:
    """A command that runs on a terminal of its own, which all of its streams are, as if typed there.

    Args:
        line: What is typed.
        columns: How wide the terminal is.
        folder: Where it runs.
        environment: The variables that it sees.
    """

    def __init__(self, line: str, columns: int, folder: Path, environment: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        given = {name: value for name, value in environment.items() if name not in _UNSET}
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", line], cwd=folder, env=given | {"TERM": "xterm-256color"},
                stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(slave)
        self._found: list[bytes] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    @property
    def written(self) -> str:
        """What it has written so far, with what controls the terminal; complete after `end`."""
        return b"".join(self._found).decode(errors="replace")

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
        self._reading.join(_END_S)
        # And the terminal is closed before the shell has quite ended.
        self.wait(_END_S)

    def end(self) -> None:
        """Kill what still runs, and read the rest of what was written."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reading.join(_END_S)
        os.close(self._master)

    def _read(self) -> None:
        # An error of input ends it: nobody has the other side open any more.
        with suppress(OSError):
            while found := os.read(self._master, 65536):
                self._found.append(found)


@contextmanager
def session(line: str, columns: int, folder: Path, environment: Mapping[str, str]) -> Iterator[Session]:
    """Run a command on a terminal of its own; what still runs at the end of the block is killed."""
    running = Session(line, columns, folder, environment)
    try:
        yield running
    finally:
        running.end()
