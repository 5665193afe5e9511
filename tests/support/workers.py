"""Which worker of pytest-xdist runs which files: the same in every run, and each about as long as the others.

After files were added, or tests became slower, measure again on an idle machine and commit
``tests/seconds.json``::

    make test PYTEST_ADDOPTS="--junit-xml=REPORT.xml -o junit_family=xunit1"
    python -m tests.support.workers REPORT.xml

and ``python -m tests.support.workers REPORT.xml vllm`` with a report of ``make test-vllm``.
"""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

SECONDS = Path(__file__).parents[1] / "seconds.json"
# What a test takes in a file that was never measured.
ONE_TEST = 0.1


def parts(tests: Mapping[str, int], seconds: Mapping[str, float], count: int) -> dict[str, int]:
    """Return the part, from 0, of each file: parts of about the same length.

    Args:
        tests: The number of tests of each file.
        seconds: How long all of a file's tests took.
        count: How many parts.
    """
    lengths = {file: seconds.get(file, ONE_TEST * number) for file, number in tests.items()}
    found, load = {}, [0.0] * count
    for file in sorted(lengths, key=lambda file: (-lengths[file], file)):
        found[file] = load.index(min(load))
        load[found[file]] += lengths[file]
    return found


def measured(marker: str) -> dict[str, float]:
    """Return how long files took in the run with this ``-m``, else in the run without one."""
    known = json.loads(SECONDS.read_text(encoding="utf-8"))
    return dict(known.get(marker, known[""]))


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
        return parts(tests, measured(self.config.option.markexpr), self.numnodes)

    def _split_scope(self, nodeid: str) -> str:
        return str(self._parts[nodeid.split("::")[0]])


def seconds_in(report: Path) -> dict[str, float]:
    """Return how long each file's tests took, by a report with files, where that is a second or more."""
    found: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(report).iter("testcase"):
        found[case.attrib["file"]] += float(case.attrib["time"])
    return {file: round(found[file]) for file in sorted(found) if found[file] >= 1}


def main(argv: Sequence[str] | None = None) -> int:
    """Write what a report says into the file of seconds: of the run without ``-m``, or with that marker."""
    report, *marker = sys.argv[1:] if argv is None else argv
    known = json.loads(SECONDS.read_text(encoding="utf-8")) if SECONDS.exists() else {}
    known["".join(marker)] = seconds_in(Path(report))
    SECONDS.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
