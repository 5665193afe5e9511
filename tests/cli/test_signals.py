"""Signals that end a command, from the first import to the last line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import HANGS_S

ENDINGS = [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("number", "word"), ENDINGS)
def test_a_request_to_end_leaves_nothing_behind(number: int, word: str, wrapped: bool) -> None:
    """A signal unwinds a command: what it had started is ended, and one line says so.

    So too where code on the way makes another error of it, as some imports do.
    """
    command = """
import contextlib, sys, time
import sere.cli, sere.cli.doctor
def run(_):
    with contextlib.ExitStack() as stack:
        stack.callback(print, "ended", flush=True)
        print("started", flush=True)
        try:
            time.sleep(60)
        except BaseException:
            if WRAPPED:
                raise ImportError("cannot import name 'x'") from None
            raise
sere.cli.doctor.run = run
sys.argv = ["sere", "doctor"]
sys.exit(sere.cli.main())
"""
    process = _started([sys.executable, "-c", command.replace("WRAPPED", str(wrapped))])
    process.send_signal(number)
    out, err = process.communicate(timeout=HANGS_S)
    assert (out, err) == ("ended\n", f"\nsere: {word}\n")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c_while_importing(tmp_path: Path, swallowed: bool) -> None:
    """In the seconds before a command begins Ctrl-C is one line and code 130, whatever imports make of it."""
    torch = """
import time
print("started", flush=True)
try:
    time.sleep(60)
except BaseException:
    if not SWALLOWED:
        raise
"""
    (tmp_path / "torch.py").write_text(torch.replace("SWALLOWED", str(swallowed)))
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    process = _started([sys.executable, "-m", "sere", "doctor"], PYTHONPATH=paths)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=HANGS_S) == ("", "\nsere: interrupted\n")
    assert process.returncode == 130


def test_importing_the_package_elsewhere_leaves_ctrl_c_alone() -> None:
    """In somebody else's program Ctrl-C stays what it is."""
    program = """
import signal
before = signal.getsignal(signal.SIGINT)
import sere
assert signal.getsignal(signal.SIGINT) is before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def _started(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a process that prints ``started`` once it is where it is wanted."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
        # A shell starts what runs in the background with Ctrl-C ignored, and processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process
