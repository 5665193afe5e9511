"""The folder of a calibration that can be interrupted: which run it is, how far it is, and what it keeps."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

from sere.errors import InputError, name_some
from sere.files import new_folders, write_json
from sere.interrupts import going_on
from sere.resume import differences

_MANIFEST = "calibration.json"
_FORMAT = 4
_KEPT = r"(?:tokens|sums-\d+-\d+|layer-\d+)\.safetensors|states-\d+\.bin|calibration\.json"
_OURS = re.compile(_KEPT)
# A process that was killed leaves such a file of `sere.files.atomic_path`.
_HALF_WRITTEN = re.compile(rf"\.(?:{_KEPT})\.[0-9a-f]{{8}}\.tmp\.\w+")
_IN_WORDS = {
    "checkpoint": "the checkpoint's files differ",
    "model": "the model's shape differs",
    "data_digest": "the texts or the tokenizer differ",
}


class RunFolder:
    """A folder with the manifest of one run, and files that the manifest says are complete.

    The manifest is written last and atomically, so that everything it names is complete.

    Attributes:
        path: The folder.
        state: How far the run is, JSON-ready.

    Raises:
        InputError: The folder belongs to another run, or holds something else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        run: Mapping[str, Any],
        begun: Mapping[str, Any],
        made: Sequence[Path] = (),
    ) -> None:
        """Open or create the folder for a run.

        Args:
            path: The folder.
            run: All that must be equal for a run to go on, JSON-ready; what is not is compared as a text.
            begun: ``state`` before anything is done.
            made: The folder and those above it that did not exist before, innermost first.
        """
        self.path = Path(path)
        self._run = json.loads(json.dumps(run, default=str))
        self._made = [os.fspath(folder) for folder in made]
        self.state = dict(begun)
        manifest = self.path / _MANIFEST
        if self.path.is_dir():
            _remove(self.path, _HALF_WRITTEN)
        if manifest.is_file():
            self._resume(self._read(manifest))
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(
                f"{self.path}: expected an empty folder or that of an interrupted calibration, got one with "
                "other files; choose another"
            )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            self.record()

    def record(self, **state: Any) -> None:
        """Write how far the run is; what is not named stays as it was."""
        self.state |= state
        about = {"format": _FORMAT, "run": self._run, "made": self._made}
        write_json(self.path / _MANIFEST, about | self.state)

    def delete(self) -> None:
        """Delete what the run kept, and the folders that were made for it if nothing else is in them."""
        _delete(self.path, self._made)

    def _read(self, manifest: Path) -> dict[str, Any]:
        found = _read_manifest(manifest)
        if found is None:
            raise self._damaged()
        return found

    def _resume(self, manifest: Mapping[str, Any]) -> None:
        if manifest.get("format") != _FORMAT:
            raise InputError(
                f"{self.path}: was written by another version of sere, which this one cannot continue; "
                "delete it, or choose another folder"
            )
        run = manifest.get("run")
        if not isinstance(run, dict) or not isinstance(run.get("chosen", {}), dict):
            raise self._damaged()
        if different := differences(*_told_apart(run, self._run), _IN_WORDS):
            raise InputError(
                f"{self.path}: holds a calibration with other settings: "
                f"{name_some(different, separator='; ')}; repeat the original "
                "command, delete the folder, or choose another folder"
            )
        if not all(_is_alike(manifest.get(name, ...), begun) for name, begun in self.state.items()):
            raise self._damaged()
        self.state = {name: manifest[name] for name in self.state}
        self._made = _folders(manifest)

    def _damaged(self) -> InputError:
        return InputError(
            f"{self.path / _MANIFEST}: is damaged; delete the folder {self.path} and start again"
        )


F = TypeVar("F", bound=RunFolder)


@contextmanager
def kept_to_go_on(
    path: str | os.PathLike[str], make: Callable[[Sequence[Path]], F], kept: Callable[[F], str | None]
) -> Iterator[F]:
    """Open a run's folder while the block runs.

    After something is done, the folder stays, also at the end: whoever saves the result deletes it then (see
    `deleted_when_saved`). If the block fails, a note on the exception says so. Otherwise nothing stays.

    Args:
        path: The folder.
        make: Opens it, given what is ``made`` for it (see `RunFolder`).
        kept: Says what is done, for the note; None for nothing.

    Raises:
        InputError: Another process is at work in it; or as `RunFolder`.
    """
    made = _missing(Path(path))
    with new_folders(path), _locked(Path(path)):
        work = make(made)
        with going_on(lambda: kept(work)):
            try:
                yield work
            except BaseException:
                if kept(work) is None:
                    work.delete()
                raise
            if kept(work) is None:
                work.delete()
            else:
                work.record(ended=token_hex(8))


@contextmanager
def deleted_when_saved(path: str | os.PathLike[str]) -> Iterator[None]:
    """Delete a run's folder after a block that calibrates with it and saves the tables.

    If the block fails after the calibration, a note on the exception says that nothing is lost. What another
    run has kept there stays.

    Args:
        path: The folder.
    """
    before = _ended(path)

    def note() -> str | None:
        if _ended(path) in (None, before):
            return None
        return f"what is done is kept in {path}; the same command continues with it"

    with going_on(note):
        yield
    if note() is not None:
        with suppress(InputError), _locked(Path(path)):  # another run is at work in it: it goes on with this
            _delete(Path(path), _folders(_read_manifest(Path(path) / _MANIFEST) or {}))


def way_of(path: str | os.PathLike[str]) -> str | None:
    """Return in which way the run in a folder was begun; None if there is none."""
    found = _read_manifest(Path(path) / _MANIFEST)
    run = None if found is None else found.get("run")
    way = run.get("way") if isinstance(run, dict) else None
    return way if isinstance(way, str) else None


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _missing(path: Path) -> list[Path]:
    """Return a folder and those above it that do not exist, innermost first."""
    with suppress(OSError, RuntimeError):  # a circle of links: opening it fails with the system's words
        whole = path.resolve()
        return [folder for folder in (whole, *whole.parents) if not folder.exists()]
    return []


def _ended(path: str | os.PathLike[str]) -> str | None:
    """Return what tells the end of one complete run from that of another; None if none is complete."""
    ended = (_read_manifest(Path(path) / _MANIFEST) or {}).get("ended")
    return ended if isinstance(ended, str) else None


def _folders(manifest: Mapping[str, Any]) -> list[str]:
    made = manifest.get("made")
    return [name for name in made if isinstance(name, str)] if isinstance(made, list) else []


def _is_alike(value: Any, begun: Any) -> bool:
    """Whether a manifest's value is of the kind of the first one, where None stands for a mapping to come."""
    return value is None or isinstance(value, dict) if begun is None else type(value) is type(begun)


def _delete(path: Path, made: Sequence[str]) -> None:
    _remove(path, _HALF_WRITTEN)
    _remove(path, _OURS)
    whole = path.resolve()
    with suppress(OSError):  # one that is not empty stays, and so do those above it
        for folder in map(Path, made):
            if folder == whole or folder in whole.parents:
                folder.rmdir()


def _remove(path: Path, names: re.Pattern[str]) -> None:
    """Delete a folder's files with such names, the manifest last: what it names is complete."""
    with suppress(FileNotFoundError):
        for file in sorted(path.iterdir(), key=lambda file: file.name == _MANIFEST):
            if names.fullmatch(file.name) and not file.is_dir():
                file.unlink(missing_ok=True)


def _told_apart(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two records without entries that tell a reader nothing.

    Another way of calibrating has other entries. How many tokens were chosen is shown if that led to other
    tokens, because it says more than their digest; for equal tokens it does not matter.
    """
    if before.get("way") != now.get("way"):
        return {"way": before.get("way")}, {"way": now.get("way")}
    digest = before.get("data_digest")
    same = digest is not None and digest == now.get("data_digest")
    chosen = before.get("chosen") != now.get("chosen")
    old, new = dict(before), dict(now)
    for run in (old, new):
        if same:
            run["chosen"] = {
                name: value for name, value in run.get("chosen", {}).items() if name != "max_tokens"
            }
        elif chosen:
            run.pop("data_digest", None)
    return old, new


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; the lock ends with the process.

    Raises:
        InputError: Another process has it.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: expected a folder, got a file; choose another")
    path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            import fcntl

            handle = os.open(path, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{path}: another calibration is running in it; wait until it ends, or choose another folder"
            ) from error
        except (ImportError, OSError):  # this system, or this disk, cannot lock a folder
            pass
        yield
