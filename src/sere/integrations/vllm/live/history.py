"""The last 15 minutes of an engine, as far as somebody looked: points of lines, and changes of settings."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from sere.integrations.vllm.live.sample import Sample

KEPT_S = 900.0
"""Seconds that are kept."""

GAP_S = 20.0
"""Seconds without an answer after which the lines have a gap. Prometheus asks every 15 seconds by default."""

WINDOW_S = 10.0
"""Seconds over which the bars are means."""

MOST_CHANGES = 20
"""How many of the last changes are kept."""


class History:
    """What an engine did between the answers that it gave to those who looked; it never asks.

    Attributes:
        changes: Newest first, each with when it was seen (``at``), when it was not yet there (``after``), and
            ``what``: by setting what it was and what it is, or ``"reset"``.
    """

    def __init__(self) -> None:
        self.changes: deque[dict[str, Any]] = deque(maxlen=MOST_CHANGES)
        self._points: deque[tuple[float, str]] = deque()
        self._window: deque[Sample] = deque()

    def add(self, sample: Sample, expert_bytes: int | None) -> None:
        """Add an answer.

        Args:
            sample: What had been counted.
            expert_bytes: Of one routed expert in one worker, or None where it is not known.
        """
        earlier = self._window[-1] if self._window else None
        if earlier is not None:
            self._note_changes(earlier, sample)
            found = sample.since(earlier)
            if found is None:
                self.note_reset(sample.at)
            else:
                one = point(found, earlier.at, expert_bytes)
                # The moment that a viewer will name as the last one that it has.
                self._points.append((one["at"], json.dumps(one)))
            if sample.settings != earlier.settings:
                # Means of two settings would be those of neither; what the change interrupted is left out.
                self._window.clear()
        self._window.append(sample)
        while len(self._window) > 2 and self._window[1].at <= sample.at - WINDOW_S:
            self._window.popleft()
        while self._points and self._points[0][0] < sample.at - KEPT_S:
            self._points.popleft()

    def note_reset(self, at: float) -> None:
        """Note that counters were set to zero, so that nothing is counted from what was before."""
        if self._window:
            self.changes.appendleft({"at": at, "after": self._window[-1].at, "what": "reset"})
            last = self._window[-1]
            zero = {index: (0,) * len(sums) for index, sums in last.layers.items()}
            self._window.clear()
            self._window.append(Sample(at, (0,) * len(last.steps), zero, last.settings))

    def recent(self) -> tuple[Sample, float] | None:
        """Return what was counted in the last seconds under the same settings, and how many seconds.

        Returns:
            None if no layer counted a step in that time, or there was no earlier answer.
        """
        if len(self._window) < 2:
            return None
        first, last = self._window[0], self._window[-1]
        found = last.since(first)
        return None if found is None or found.is_empty else (found, last.at - first.at)

    def points_after(self, at: float) -> Iterator[str]:
        """Yield the points after a moment as JSON, the oldest first."""
        return iter([text for when, text in self._points if when > at])

    def _note_changes(self, earlier: Sample, later: Sample) -> None:
        names = sorted(earlier.settings.keys() | later.settings.keys())
        values = {name: (earlier.settings.get(name), later.settings.get(name)) for name in names}
        what = {name: list(pair) for name, pair in values.items() if pair[0] != pair[1]}
        if what:
            self.changes.appendleft({"at": later.at, "after": earlier.at, "what": what})


def point(found: Sample, since: float, expert_bytes: int | None) -> Mapping[str, Any]:
    """Return one point of the lines, JSON-ready.

    Args:
        found: What was counted up to its moment.
        since: From when on, in seconds since 1970.
        expert_bytes: Of one routed expert in one worker, or None where it is not known.

    Returns:
        ``at``, ``seconds``, ``gap`` (nobody looked for so long), ``steps`` by kind, the means of
        `Sample.means`, and ``bytes``, of weights that one worker did not read.
    """
    saved = None if expert_bytes is None else expert_bytes * found.experts_not_read()
    seconds = found.at - since
    steps = {kind: count for kind, count in found.by_kind().items() if count}
    timing = {"at": round(found.at, 3), "seconds": round(seconds, 3), "gap": seconds > GAP_S}
    return timing | {"steps": steps, "bytes": saved} | found.means()
