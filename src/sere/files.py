"""Write files so that a reader sees the old content or the new, never a half."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sere.errors import OutputError

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends well.

    On any exception, Ctrl-C included, the temporary file is deleted and ``path`` is left as it was.

    Args:
        path: Where the finished file is to be; of a link, where it points to. Its folder is created if need
            be.

    Raises:
        OutputError: There is something else than a file, or it cannot be written.
    """
    with _temporary(path) as (temporary, target):
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Make sure, before long work, that a file can be written to ``path``, its folder made if need be.

    Nothing is left behind, no folder either.

    Raises:
        OutputError: It cannot.
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
    """Refuse to write over a file that somebody still needs: weights or texts, for example.

    Args:
        path: Where a file is to be written.
        ours: Whether a file that is not empty holds what is to be written, so that it may be replaced.
        what: What that is, for the error.
        read: What the same command reads; None is left aside.

    Raises:
        OutputError: There is a file of another kind, or one that is read.
    """
    target = Path(path)
    if not target.is_file():
        return
    if any(name is not None and Path(name).exists() and target.samefile(name) for name in read):
        raise OutputError(f"{os.fspath(path)}: is read by the same command; give another name")
    if target.stat().st_size and not ours(target):
        raise OutputError(
            f"{os.fspath(path)}: holds something other than {what}, which would be lost; give another name, "
            "or delete the file first"
        )


def holds_json(path: Path) -> bool:
    """Whether a file begins like a JSON object, or lines of them."""
    with path.open("rb") as stream:
        return stream.read(64).lstrip().startswith(b"{")


def what_is_there(path: str | os.PathLike[str]) -> str:
    """Return, for an error's text, what was found where a file was expected."""
    return "this is a folder" if Path(path).is_dir() else "there is no such file"


@contextmanager
def _temporary(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """Yield a new file, which is gone afterward, and the file beside it that ``path`` stands for.

    Folders that were made for it and are empty afterward are gone too.

    Raises:
        OutputError: The new file cannot be made; or an `OSError` in the block has no name, or that of the new
            file, which nobody asked for.
    """
    prefix = f".{Path(path).name}."
    with new_folders(path):
        with _naming(path):
            target = _target(path)
            handle, name = tempfile.mkstemp(prefix=prefix, suffix=f".tmp{target.suffix}", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary, target
        except OSError as error:
            named = error.filename
            if error.strerror is None or (named is not None and not Path(str(named)).name.startswith(prefix)):
                raise
            raise _refusal(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folders(path: str | os.PathLike[str]) -> Iterator[None]:
    """Remove, after the block, the folders above ``path`` that were not there before and are empty."""
    missing = []
    with suppress(OSError, RuntimeError):  # below a file, or a circle of links: the block will say
        missing = [folder for folder in Path(path).resolve().parents if not folder.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # the first that is not empty ends it
            for folder in missing:
                folder.rmdir()


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system says into an `OutputError` that names ``path`` as it was given."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise _refusal(path, error) from error


def _refusal(path: str | os.PathLike[str], error: OSError) -> OutputError:
    return OutputError(f"{os.fspath(path)}: cannot be written: {error.strerror}")


def _target(path: str | os.PathLike[str]) -> Path:
    """Return the file that ``path`` stands for, at the end of all links, and make its folder if need be.

    Raises:
        OutputError: What is there is no file, and would be gone once a file took its place.
    """
    with suppress(FileNotFoundError):
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "a device")
            raise OutputError(f"{os.fspath(path)}: expected a file or a free name, got {kind}; name another")
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n", encoding="utf-8")


def append_json_line(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Append ``record`` as one line to a JSON-lines file, in a single write.

    Raises:
        OutputError: There is something else than a file, or it cannot be written.
    """
    line = json.dumps(record) + "\n"
    with _naming(path), _target(path).open("a", encoding="utf-8") as stream:
        stream.write(line)
