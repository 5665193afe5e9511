"""Compile an entry of the source for one architecture with NVRTC, once: the result is kept on disk."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from pathlib import Path

from sere.files import atomic_path, cache_folder, others_can_write
from sere.provenance import installed_version
from sere.reroute.backends.cuda.launch import SOURCE
from sere.warn_once import WarnOnce

warn_once = WarnOnce(logging.getLogger("sere"))

# Sums in float64 must round as the reference's do: no product and sum in one step. Lines cost nothing at run
# time, and sanitizers and profilers name them.
OPTIONS = {"std": "c++17", "fma": False, "lineinfo": True}
_ENTRY = "SERE_ENTRY("


def source_text(entry: str | None = None) -> str:
    """Return the source with its own headers put in, as NVRTC takes it; lines keep file and number.

    Args:
        entry: The only entry that is left in it, by name; all if None.
    """
    text = _inlined(SOURCE, set())
    if entry is None:
        return text
    return "\n".join("" if _is_another(line, entry) else line for line in text.split("\n"))


def _is_another(line: str, entry: str) -> bool:
    return line.startswith(_ENTRY) and not line.startswith(f"{_ENTRY}{entry},")


def cubin(arch: str, entry: str) -> bytes:
    """Return an entry's machine code for an architecture, from the cache or compiled now.

    Args:
        arch: Such as ``"sm_90"``.
        entry: The entry's name.

    Raises:
        ImportError: cuda-core is not installed.
        Exception: NVRTC is missing or does not know the architecture; cuda-core's own classes.
    """
    path = _trusted(_file(arch, entry))
    # A file that cannot be read, or that another process has just deleted, is compiled again.
    with suppress(OSError):
        if path is not None and others_can_write(path) is None:
            return path.read_bytes()
    code = compile_source(arch, entry)
    try:
        if path is not None:
            with atomic_path(path) as temporary:
                temporary.write_bytes(code)
                # Whatever the umask says: a file that others may write is not read.
                temporary.chmod(0o600)
    except OSError:
        pass  # a cache that cannot be written only costs some seconds at each start
    return code


def forget(arch: str, entry: str) -> bool:
    """Delete an entry's machine code from the cache; return whether there was any."""
    path = _file(arch, entry)
    try:
        if path is None:
            return False
        path.unlink()
    except OSError:
        return False
    return True


def compile_source(
    arch: str, entry: str | None = None, *, logs: object = None, ptxas_options: str | None = None
) -> bytes:
    """Compile with NVRTC, past the cache; errors as in ``cubin``.

    Args:
        arch: Such as ``"sm_90"``.
        entry: The only entry that is compiled, by name; all if None.
        logs: Has a ``write`` for the compiler's text, or None.
        ptxas_options: For the assembler, such as ``"-v"``, or None.
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(arch=arch, ptxas_options=ptxas_options, **OPTIONS)
    code = Program(source_text(entry), "c++", options).compile("cubin", logs=logs).code
    return code if isinstance(code, bytes) else Path(code).read_bytes()


def _trusted(path: Path | None) -> Path | None:
    """Return the file's path if nobody else can put another one there, which would run on the GPU; else None.

    Its folder is made if needed, for this user alone.
    """
    if path is None:
        return None
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = others_can_write(folder)
    except OSError:  # a cache that cannot be made only costs some seconds at each start
        return None
    if reason is None:
        return path
    warn_once(
        str(folder),
        "sere: %s: compiled code is not kept here, because %s; it is compiled at each start until you run "
        "chmod go-w on your own folder, or set SERE_CACHE_DIR to one",
        folder,
        reason,
    )
    return None


def _file(arch: str, entry: str) -> Path | None:
    try:
        return cache_folder() / f"{entry}-{arch}-{_key(arch, entry)}.cubin"
    except RuntimeError:  # a user without a home, as in some containers
        return None


def _key(arch: str, entry: str) -> str:
    versions = [installed_version(package) for package in ("cuda-core", "nvidia-cuda-nvrtc")]
    text = "\0".join([source_text(entry), arch, repr(OPTIONS), repr(versions)])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _inlined(path: Path, done: set[Path]) -> str:
    if path in done:
        return ""
    done.add(path)
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith('#include "'):
            header = _inlined(path.with_name(line.split('"')[1]), done)
            lines.append(f'{header}#line {number + 1} "{path.name}"')
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"
