"""The terminal of the page of transcripts and of other tests: what is left on its screen, what runs on it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from sere.engines.patience import Patience
from tests.support.patience import HANGS_S
from tests.support.terminal import ROWS, screen_text, session

WIDE = 12
ENVIRONMENT = {"PATH": os.environ["PATH"], "COLUMNS": "37"}


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ("one\r\ntwo\r\n", "one\ntwo"),
        ("10 %\r99 %\r100 %\r\n", "100 %"),
        ("a bar\r     \rdone\r\n", "done"),
        ("a bar\r\x1b[Kx\r\n", "x"),
        ("abc\x1b[2K\rx", "x"),
        ("abcd\x1b[2D\x1b[1Kx", "  xd"),
        ("first\r\nsecond\x1b[A\rFIRST\r\n", "FIRST\nsecond"),
        ("a\nb", "a\n b"),
        ("x" * 15, "x" * 12 + "\nxxx"),
        ("x" * 12 + "\r\ny", "x" * 12 + "\ny"),
        ("x" * 12 + "\ry", "y" + "x" * 11),
        ("a\tb\b\bc", "a      cb"),
        ("\x1b[1;31mred\x1b[0m \x1b]0;title\x07\x1b(B\x1b[?25lx\x07", "red x"),
        ("one\r\ntwo\x1b[H\x1b[Jx", "x"),
        ("one\r\ntwo\x1b[2J\x1b[1;3Hx", "  x"),
        ("one  \r\n\r\n  two\r\n\r\n", "one\n\n  two"),
        ("ab\x1b[5Gc\x1b[Cd", "ab  c d"),
        ("█▏é\r\n", "█▏é"),
        ("half a sequence\x1b[", "half a seque\nnce"),
        ("\u65e5" * 7, "\u65e5" * 6 + "\n\u65e5"),
        ("a\u0301b\r\n", "\xe1b"),
        ("a\u200bb \u26a0\ufe0f c\x85d\r\n", "ab \u26a0 cd"),
    ],
)
def test_what_is_left_on_the_screen(written: str, left: str) -> None:
    """Lines that are written over, erased or too long; controls, and what has no width, are gone."""
    assert screen_text(written, WIDE) == left


def test_the_screen_is_the_end_of_what_was_written() -> None:
    """Its first line is not the first of all: what has scrolled off cannot be written over."""
    lines = [f"{n}\r\n" for n in range(100)]
    found = screen_text("".join(lines) + "\x1b[Hx", WIDE).splitlines()
    assert [at for at, line in enumerate(found) if line.startswith("x")] == [101 - ROWS]
    assert found[0] == "0"


def test_a_command_sees_a_terminal(tmp_path: Path) -> None:
    """Both streams are one, of the width that was asked for; the folder and variables are those given."""
    line = "test -t 0 && test -t 1 && test -t 2 && stty size; pwd >&2; echo $TERM ${COLUMNS:-none}; exit 3"
    with session(line, 91, tmp_path, ENVIRONMENT) as running:
        assert running.wait(60) == 3
    size, folder, variables = screen_text(running.screen.raw, 400).splitlines()
    assert size.split() == [str(ROWS), "91"]
    assert Path(folder).resolve() == tmp_path.resolve()
    assert variables == "xterm-256color none"


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    """Waiting ends in time, Ctrl-C reaches what the shell has started, and the output is complete."""
    line = "sh -c 'trap \"echo bye; exit\" INT; echo started; while :; do sleep 0.05; done' | cat"
    with session(line, 91, tmp_path, ENVIRONMENT) as running:
        patience = Patience(HANGS_S)
        while "started" not in running.screen.raw and patience.lasts():
            time.sleep(0.02)
        assert running.wait(0.2) is None
        assert running.code is None
        running.interrupt()
        assert running.code is not None
    assert "started" in running.screen.raw


def test_what_does_not_end_is_killed(tmp_path: Path) -> None:
    """Also where nothing else is heard."""
    line = "sh -c 'trap \"\" INT TERM HUP; echo $$ > pid; sleep 600' & wait"
    with session(line, 91, tmp_path, ENVIRONMENT) as running:
        patience = Patience(HANGS_S)
        while not (tmp_path / "pid").exists() and patience.lasts():
            time.sleep(0.02)
        assert running.code is None
    assert running.code == -9


def test_ctrl_c_is_heard_whatever_this_process_ignores(tmp_path: Path) -> None:
    """A process that was started in the background ignores Ctrl-C, and hands that on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # A shell that is just starting a command may take no notice itself.
        with session("echo started; exec sleep 600", 91, tmp_path, ENVIRONMENT) as running:
            while "started" not in running.screen.raw:
                time.sleep(0.02)
            running.interrupt()
            assert running.code is not None
    finally:
        signal.signal(signal.SIGINT, before)
