"""The folder of a calibration that can be interrupted: which run it is, how far it is, and what it keeps."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sere.errors import InputError, name_some
from sere.files import new_folders, write_json
from sere.interrupts import going_on
from sere.resume import differences

_MANIFEST = "calibration.json"
_FORMAT = 4
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
        self, path: str | os.PathLike[str], run: Mapping[str, Any], begun: Mapping[str, Any]
    ) -> None:
        """Open or create the folder for a run.

        Args:
            path: The folder.
            run: All that must be equal for a run to go on, JSON-ready; what is not is compared as a text.
            begun: ``state`` before anything is done.
        """
        self.path = Path(path)
        self._run = json.loads(json.dumps(run, default=str))
        self.state = dict(begun)
        manifest = self.path / _MANIFEST
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
        write_json(self.path / _MANIFEST, {"format": _FORMAT, "run": self._run} | self.state)

    def delete(self) -> None:
        """Delete the folder: the run is done."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path)

    def _read(self, manifest: Path) -> dict[str, Any]:
        found = _read_manifest(manifest)
        if found is None:
            raise InputError(f"{manifest}: is damaged; delete the folder {self.path} and start again")
        return found

    def _resume(self, manifest: Mapping[str, Any]) -> None:
        if manifest.get("format") != _FORMAT:
            raise InputError(
                f"{self.path}: was written by another version of sere, which this one cannot continue; "
                "delete it, or choose another folder"
            )
        if different := differences(*_told_apart(manifest.get("run", {}), self._run), _IN_WORDS):
            raise InputError(
                f"{self.path}: holds an interrupted calibration with other settings: "
                f"{name_some(different, separator='; ')}; repeat the original "
                "command, delete the folder, or choose another folder"
            )
        self.state = {name: manifest[name] for name in self.state}


F = TypeVar("F", bound=RunFolder)


@contextmanager
def kept_until_done(
    path: str | os.PathLike[str], make: Callable[[], F], kept: Callable[[F], str | None]
) -> Iterator[F]:
    """Open a run's folder while the block runs; delete it at the end.

    If the block fails after something is done, the folder stays, and a note on the exception says so;
    otherwise nothing stays.

    Args:
        path: The folder.
        make: Opens it.
        kept: Says what is done, for the note; None for nothing.

    Raises:
        InputError: Another process is at work in it; or as `RunFolder`.
    """
    with new_folders(path), _locked(Path(path)):
        work = make()
        with going_on(lambda: kept(work)):
            try:
                yield work
            except BaseException:
                if kept(work) is None:
                    work.delete()
                raise
        work.delete()


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
