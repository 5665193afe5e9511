"""What racecheck reports, and which of it is expected: threads that store the same mark at the same time."""

from __future__ import annotations

import re

# One report of ``--racecheck-report hazard``: where, who wrote or read, what was there and what came.
REPORT = re.compile(r"^=+ .*\bhazard detected\b.*$", re.MULTILINE)
ACCESS = re.compile(r"^=+ +(Write|Read) Thread", re.MULTILINE)
VALUES = re.compile(r"Current Value\s*:\s*(\w+)\s*,\s*Incoming Value\s*:\s*(\w+)")


def unexpected_hazards(text: str) -> list[str]:
    """Return the reports that are more than two stores of the same value: of these SERE_MARK makes many.

    A report of another form than the known one is returned, too: what cannot be read is not expected.

    Args:
        text: The output of ``compute-sanitizer --tool racecheck --racecheck-report hazard``.
    """
    starts = [match.start() for match in REPORT.finditer(text)]
    reports = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    return [report for report in reports if not _is_same_store(report)]


def _is_same_store(report: str) -> bool:
    values = VALUES.search(report)
    return (
        "WAW" in report
        and ACCESS.findall(report) == ["Write", "Write"]
        and (values is not None and values[1] == values[2])
    )
