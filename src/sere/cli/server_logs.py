"""Where a command puts the logs of the servers that it starts, and whether they are kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sere.errors import EngineFailure, ServerError, name_some


class Logs:
    """The files of the servers' logs.

    Attributes:
        keep: Whether the files are kept when the command ends.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self.prefix, self.keep = folder, prefix, False
        self.files: list[Path] = []

    def file(self, name: str) -> Path:
        """Return the file for a server's log, whose folder is made if need be."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.prefix}{name}.log"
        if path not in self.files:
            self.files.append(path)
        return path

    def where(self) -> str:
        """Return the end of a text that says where the logs are."""
        found = [str(path) for path in self.files if path.exists()]
        return f"; complete logs: {name_some(found)}" if found else ""


@contextmanager
def server_logs(out: Path | None) -> Iterator[Logs]:
    """Give the servers' logs a folder; they are kept if something failed.

    Args:
        out: The file beside which they are written; None for a new folder.

    Raises:
        ServerError: A server's error, with where the logs are.
        EngineFailure: An engine's.
    """
    folder = Path(tempfile.mkdtemp(prefix="sere-bench-")) if out is None else out.absolute().parent
    logs = Logs(folder, "" if out is None else f"{out.name}.")
    try:
        yield logs
    except (ServerError, EngineFailure) as error:
        logs.keep = True
        raise type(error)(f"{error}{logs.where()}") from error
    finally:
        if not logs.keep:
            for path in logs.files:
                path.unlink(missing_ok=True)
            if out is None:
                folder.rmdir()
