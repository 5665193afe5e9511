"""Write files so that a reader sees the old content or the new, never a half-written file."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from sere.errors import OutputError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` when the block ends without an error.

    A rename replaces a file in one step, so there is never a half-written one. After any exception, including
    Ctrl-C, the temporary file is deleted and ``path`` is as it was.

    Args:
        path: Where the finished file is to be; a link is followed, not replaced. Its folder is created if
            needed.

    Raises:
        OutputError: Something other than a file is there, or it cannot be written.
    """
    with _temporary(path) as (temporary, target):
        yield temporary
        temporary.replace(target)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check, before long work, that a file can be written to ``path``; leave nothing behind.

    Raises:
        OutputError: It cannot be written.
    """
    with _temporary(path):
        pass


def keep_other_files(
    path: str | os.PathLike[str],
    ours: Callable[[Path], bool],
    what: str,
    *,
    read: Iterable[str | os.PathLike[str] | None] = (),
) -> None:
    """Refuse to overwrite a file that somebody still needs, such as weights or texts.

    Args:
        path: Where a file is to be written.
        ours: Whether a file that is not empty is of the kind that is to be written, so that it may be
            replaced.
        what: That kind, for the error.
        read: Files that the same command reads; None is skipped.

    Raises:
        OutputError: A file of another kind is there, or one that is read.
    """
    target = Path(path)
    if not target.is_file():
        return
    if any(name is not None and Path(name).exists() and target.samefile(name) for name in read):
        raise OutputError(f"{os.fspath(path)}: is read by the same command; choose another path")
    if target.stat().st_size and not ours(target):
        raise OutputError(
            f"{os.fspath(path)}: expected {what} or no file, got another file, which would be lost; "
            "choose another path, or delete the file first"
        )


def holds_json(path: Path) -> bool:
    """Whether a file starts like a JSON object or JSON lines."""
    with path.open("rb") as stream:
        return stream.read(64).lstrip().startswith(b"{")


def others_can_write(path: Path) -> str | None:
    """Return how somebody else could change a file, or put one into a folder; None if nobody else can.

    Args:
        path: What exists.

    Raises:
        OSError: It cannot be looked at.
    """
    found = path.stat()
    # Only POSIX systems say whose a file is.
    if not hasattr(os, "geteuid"):
        return None
    if found.st_uid not in (os.geteuid(), 0):
        return f"it belongs to the user {found.st_uid}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (mode {stat.S_IMODE(found.st_mode):o})"
    return None


def what_is_there(path: str | os.PathLike[str]) -> str:
    """Return, for an error text, what is wrong with a path where a file was expected."""
    return "is a directory" if Path(path).is_dir() else "does not exist"


@contextmanager
def new_folders(path: str | os.PathLike[str]) -> Iterator[None]:
    """Remove, after the block, the folders above ``path`` that did not exist before and are empty."""
    missing = []
    with suppress(OSError, RuntimeError):  # a file among the folders, or a circle of links: the block fails
        missing = [folder for folder in Path(path).resolve().parents if not folder.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # innermost first; one that is not empty stays, and so do those above it
            for folder in missing:
                folder.rmdir()


@contextmanager
def _temporary(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """Yield a new temporary file and the file that it will replace; afterward the temporary file is gone.

    Errors name ``path`` as it was given, not the temporary file, which nobody asked for. Errors of the block
    that name another file, or that are not the system's, pass as they are.

    Raises:
        OutputError: The temporary file cannot be created or written.
    """
    with new_folders(path):
        with _naming(path):
            target = _target(path)
            # In the same folder, because a rename to another disk is a copy; with the same suffix, because
            # some writers choose the format by it.
            temporary = target.with_name(f".{target.name}.{token_hex(4)}.tmp{target.suffix}")
            # Made here and not by `tempfile`, whose files only their owner can read.
            temporary.touch(exist_ok=False)
        try:
            yield temporary, target
        except OSError as error:
            if error.strerror is None or error.filename not in (None, temporary, str(temporary)):
                raise
            raise _cannot_write(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the system's errors into an `OutputError` that names ``path`` as it was given."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: str | os.PathLike[str], error: OSError) -> OutputError:
    return OutputError(f"{os.fspath(path)}: cannot be written: {error.strerror}")


def _target(path: str | os.PathLike[str]) -> Path:
    """Return the file at the end of all links, in a folder that exists from now on.

    Raises:
        OutputError: Something other than a file is there; renaming a file to a device would replace it.
    """
    with suppress(FileNotFoundError):
        Path(path).stat()  # for a circle of links this fails with the system's words
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        kind = "directory" if target.is_dir() else "device, pipe or socket"
        raise OutputError(
            f"{os.fspath(path)}: expected a file path, but a {kind} exists there; choose another path"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n", encoding="utf-8")


def append_json_line(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Append ``record`` as one line to a JSON-lines file, in a single write.

    Raises:
        OutputError: Something other than a file is there, or it cannot be written.
    """
    line = json.dumps(record) + "\n"
    with _naming(path), _target(path).open("a", encoding="utf-8") as stream:
        stream.write(line)


def cache_folder() -> Path:
    """Return the folder for what can be remade: ``SERE_CACHE_DIR``, or ``sere`` in the user's cache folder.

    Raises:
        RuntimeError: Neither is named and the user has no home folder.
    """
    named = os.environ.get("SERE_CACHE_DIR")
    if named:
        return Path(named)
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "sere"
