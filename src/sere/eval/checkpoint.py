"""Keep the finished cases of a long run, so that it can be interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sere.files import write_json


class Checkpoint:
    """Finished cases in a file, valid only for the run that wrote them.

    A file of another run (other model, table or plan) or a damaged one counts as empty and is
    overwritten: its cases cannot be compared with this run's.

    Args:
        path: The file; None keeps nothing.
        key: What identifies the run; JSON-ready.
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
            return dict(found["cases"]) if found["key"] == self.key else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def files_digest(folder: str | os.PathLike[str]) -> str:
    """Return what tells a model's folder from itself with other weights: files' names, sizes and times."""
    digest = blake2b(digest_size=16)
    for path in sorted(Path(folder).iterdir()):
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
