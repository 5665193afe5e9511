"""Keep the finished cases of a long run, so that it can be interrupted."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sere.files import write_json
from sere.interrupts import going_on
from sere.resume import differences

logger = logging.getLogger("sere")

_IN_WORDS = {
    "weights": "the model's weights differ",
    "model.digest": "the model's shape differs",
    "table.fingerprint": "the tables differ",
    "plan.questions_digest": "the questions differ",
    "plan.prompts_digest": "the prompts differ",
    "plan.passages_digest": "the English passages differ",
}


class Checkpoint:
    """Finished cases in a file, valid only for the run that wrote them.

    A file of another run (other model, table or plan) or a damaged one counts as empty and is
    overwritten: its cases cannot be compared with this run's. A warning says in what they differ.

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
            cases, key = dict(found["cases"]), dict(found["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        if different := differences(key, self.key, _IN_WORDS):
            logger.warning(
                "sere: starting over: %d finished cases in %s are of another run: %s",
                len(cases), self.path, "; ".join(different),
            )  # fmt: skip
            return {}
        return cases

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Note on whatever ends the block early how many cases the same command finds done."""

        def kept() -> str | None:
            if self.path is None or not self.cases:
                return None
            done = f"finished cases: {len(self.cases)} (kept in {self.path})"
            return f"{done}; the same command continues after them"

        with going_on(kept):
            yield


def files_digest(folder: str | os.PathLike[str]) -> str:
    """Return what tells a model's folder from itself with other weights: files' names, sizes and times."""
    digest = blake2b(digest_size=16)
    for path in sorted(Path(folder).iterdir()):
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
