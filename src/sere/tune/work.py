"""The finished measurements of a tuning, kept in a folder so that an interrupted run can continue."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sere.errors import InputError, name_some
from sere.files import new_folders, write_json
from sere.interrupts import going_on
from sere.resume import differences

_FILE = "tuning.json"
_FORMAT = 2
_IN_WORDS = {
    "weights": "the model's weights differ",
    "model": "the model's shape differs",
    "table": "the tables differ",
    "plan.prompts_digest": "the prompts differ",
}


class Work:
    """Finished measurements by name; each is on disk before the next begins.

    Attributes:
        path: The folder; None keeps nothing on disk.
        done: What was measured, JSON-ready, by name.

    Raises:
        InputError: The folder belongs to another run, or holds something else.
    """

    def __init__(self, path: str | os.PathLike[str] | None, run: Mapping[str, Any]) -> None:
        """Open or create the folder for the run that ``run``, a JSON-ready mapping, describes."""
        self.path = None if path is None else Path(path)
        self._run = json.loads(json.dumps(run))
        self.done: dict[str, Any] = {}
        self._before: set[str] = set()
        if self.path is None:
            return
        if (self.path / _FILE).is_file():
            self.done = self._resume(self.path / _FILE)
            self._before = set(self.done)
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(
                f"{self.path}: expected an empty folder or that of an interrupted tuning, got one with other "
                "files; choose another"
            )

    def take_up(self, name: str) -> bool:
        """Say, once, whether a measurement was finished by an earlier run: progress counts it at once."""
        known = name in self._before
        self._before.discard(name)
        return known

    def put(self, name: str, result: Any) -> None:
        """Keep a finished measurement."""
        self.done[name] = result
        if self.path is not None:
            write_json(self.path / _FILE, {"format": _FORMAT, "run": self._run, "done": self.done})

    def delete(self) -> None:
        """Delete the folder: the run is done."""
        if self.path is not None and self.path.is_dir():
            shutil.rmtree(self.path)

    def _resume(self, path: Path) -> dict[str, Any]:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            known, run, done = found["format"] == _FORMAT, dict(found["run"]), dict(found["done"])
        except (OSError, ValueError, KeyError, TypeError):
            known, run, done = False, {}, {}
        if not known:
            raise InputError(
                f"{path}: is damaged, or of another version of sere; delete the folder {self.path}, or "
                "choose another"
            )
        if different := differences(run, self._run, _IN_WORDS):
            raise InputError(
                f"{self.path}: holds an interrupted tuning with other settings: "
                f"{name_some(different, separator='; ')}; repeat the original command, delete the folder, or "
                "choose another folder"
            )
        return done


@contextmanager
def resumable(path: str | os.PathLike[str] | None, run: Mapping[str, Any], *, keep: bool) -> Iterator[Work]:
    """Open a work folder while the block runs.

    If the block fails after a measurement is finished, the folder stays, and a note on the exception says so.

    Args:
        path: The folder; None keeps nothing on disk.
        run: See `Work`.
        keep: Whether the folder stays in the end, for further tiers from the same measurements.
    """

    def kept() -> str | None:
        if work.path is None or not work.done:
            return None
        return (
            f"{len(work.done)} finished measurements are kept in {work.path}; the same command continues "
            "after them"
        )

    work = Work(path, run)
    with new_folders(Path(path) / _FILE if path is not None else Path()), going_on(kept):
        yield work
    if not keep:
        work.delete()
