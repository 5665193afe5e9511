"""Which worker of pytest-xdist runs which files: the same in every run."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# A test that is marked as slow takes as long as about this many others.
SLOW = 40


def parts(tests: dict[str, int], count: int, root: Path) -> dict[str, int]:
    """The part, from 0, of each file, given how many tests it has: parts of about the same length."""
    lengths = {
        file: number + SLOW * (root / file).read_text(encoding="utf-8").count("mark.slow")
        for file, number in tests.items()
    }
    found, load = {}, [0] * count
    for file in sorted(lengths, key=lambda file: (-lengths[file], file)):
        found[file] = load.index(min(load))
        load[found[file]] += lengths[file]
    return found


class FixedParts(LoadScopeScheduling):
    """As many units of work as workers, so that none is handed out by who is ready first."""

    config: pytest.Config

    @property
    def nodes(self) -> list[WorkerController]:
        """The workers, by name rather than by who started first."""
        return sorted(super().nodes, key=lambda node: str(node.gateway.id))

    @functools.cached_property
    def _parts(self) -> dict[str, int]:
        assert self.collection is not None
        tests = Counter(nodeid.split("::")[0] for nodeid in self.collection)
        return parts(tests, self.numnodes, self.config.rootpath)

    def _split_scope(self, nodeid: str) -> str:
        return str(self._parts[nodeid.split("::")[0]])
