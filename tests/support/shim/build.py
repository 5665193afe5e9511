"""Compile the kernel's own source for the CPU, with g++, once per content."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from sere.files import atomic_path
from sere.reroute.backends.cuda.launch import SOURCE

HERE = Path(__file__).parent
CACHE = HERE.parents[2] / ".cache" / "shim"
COMPILER = shutil.which("g++")
NO_COMPILER = "no g++ on this machine to compile the kernel's source for the CPU"
FLAGS = (
    "-std=c++20",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
)


@cache
def build(main: str, *flags: str, kernel: Path = SOURCE.parent) -> Path:
    """Return what g++ makes of ``main`` and the kernel; kept until either or the flags change.

    Args:
        main: A file of this folder.
        flags: Further flags.
        kernel: The folder of the kernel's source.
    """
    assert COMPILER is not None, NO_COMPILER
    parts = sorted([*HERE.glob("*.?pp"), *kernel.glob("*.cu*")])
    digest = hashlib.sha256(repr((main, FLAGS, flags)).encode())
    for part in parts:
        digest.update(part.read_bytes())
    path = CACHE / f"{Path(main).stem}-{digest.hexdigest()[:20]}.so"
    if not path.exists():
        with atomic_path(path) as temporary:
            command = [COMPILER, *FLAGS, *flags, f"-I{kernel}", str(HERE / main), "-o", str(temporary)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr
        path.chmod(0o755)
    return path


@cache
def no_sanitizer() -> str | None:
    """Return why g++'s sanitizers cannot be used here, or None."""
    if COMPILER is None:
        return NO_COMPILER
    for names in ("thread", "address,undefined"):
        command = [COMPILER, f"-fsanitize={names}", "-x", "c++", "-", "-o", os.devnull]
        run = subprocess.run(command, input="int main() {}", capture_output=True, text=True, check=False)
        if run.returncode != 0:
            return f"g++ is here without the library for -fsanitize={names}"
    return None
