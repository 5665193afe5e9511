"""Keep the finished cases of a long run, so that it can be interrupted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sere.errors import InputError
from sere.files import write_json

# Says nothing to a reader.
_DIGEST = re.compile(r"[0-9a-f]{32,}")


class Checkpoint:
    """Finished cases in a file, valid only for the run that wrote them.

    A damaged file counts as empty and is overwritten.

    Args:
        path: The file; None keeps nothing.
        key: What identifies the run; JSON-ready.

    Raises:
        InputError: The file holds cases of another run (other model, table or plan), which cannot be compared
            with this run's; the text names what differs.
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.key = json.loads(json.dumps(key))
        self.cases: dict[str, dict[str, Any]] = self._read()

    def get(self, name: str) -> dict[str, Any] | None:
        """Return a finished case, or None."""
        return self.cases.get(name)

    def put(self, name: str, case: dict[str, Any]) -> None:
        """Keep a finished case; the file holds it before this returns."""
        self.cases[name] = case
        if self.path is not None:
            write_json(self.path, {"key": self.key, "cases": self.cases})

    def delete(self) -> None:
        """Remove the file: the run is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, dict[str, Any]]:
        if self.path is None:
            return {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            key, cases = dict(found["key"]), dict(found["cases"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        if differing := list(_differences(key, self.key)):
            raise InputError(
                f"{self.path}: holds the finished cases of an interrupted run that differs in "
                f"{'; '.join(differing)}. To go on with that run, give its arguments again; to begin a new "
                "one, delete this file or choose another --out"
            )
        return cases


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Yield a text for each value in which two keys differ, down to single values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for part in {**here, **there}:
            yield from _differences(there.get(part), here.get(part), f"{name} {part}".strip())
    elif there != here:
        hidden = any(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (there, here))
        yield (
            name.replace("_", " ")
            if hidden
            else (f"{name.replace('_', ' ')} ({json.dumps(there)} there, {json.dumps(here)} here)")
        )


def files_digest(folder: str | os.PathLike[str]) -> str:
    """Return what tells a model's folder from itself with other weights: files' names, sizes and times."""
    digest = blake2b(digest_size=16)
    for path in sorted(Path(folder).iterdir()):
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
