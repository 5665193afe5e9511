"""Run a small Python program in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.patience import HANGS_S


def run_program(program: str, folder: Path | None = None) -> None:
    """Run a program that must end well; its errors are shown otherwise."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=folder, capture_output=True, text=True, timeout=HANGS_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
