"""A model hub without a network: a folder that stands for a repository, and what is fetched of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository, ``mill/moe``, and a cache.

    Attributes:
        repository: What is on the hub; fill it before use.
        cached: The folder of the cache that fetched files go to.
        fetched: Names of the files that were fetched, sorted.
    """

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository = place / "repository"
        self.cached = place / "cache" / "models--mill--moe" / "snapshots" / COMMIT
        self.revisions: list[str | None] = []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    @property
    def fetched(self) -> list[str]:
        """Names of the files in the cache."""
        return sorted(str(path.relative_to(self.cached)) for path in self.cached.rglob("*") if path.is_file())

    def download(self, name: str, *, revision: str | None = None, **patterns: Any) -> str:
        """Stand for ``snapshot_download``."""
        if name != "mill/moe":
            raise ValueError(f"404: {name}")
        self.revisions.append(revision)
        names = [
            str(path.relative_to(self.repository)) for path in self.repository.rglob("*") if path.is_file()
        ]
        for chosen in filter_repo_objects(names, **patterns):
            (self.cached / chosen).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / chosen, self.cached / chosen)
        self.cached.mkdir(parents=True, exist_ok=True)
        return str(self.cached)
