"""How long a server's engine is stopped, from what `engine_times` notes within the engine's processes.

Two things are judged, each without the time in which its thread waited for a core of the machine (its "own"
time), and each must stay within 100 ms:

- a call: what the engine and its worker spend on one call of sere's methods. Requests to the port for metrics
  are answered by a thread of the worker: what it computes for one counts as a call, and so does its reading
  of counters;
- a pause between two steps while requests are unfinished: the engine takes in what was sent to it, calls
  included, and the worker that is told to run a step waits for who reads its counters.

How late tokens reach a client says less: client and server wait for cores, too, and for each other.
"""

from __future__ import annotations

import os
import shutil
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import engine_times
from engine_times import ANSWER, BEGIN, BETWEEN, CALL, FOLDER, READ, STEP

PAUSE_MS = 100.0
PLUGIN = "sere_engine_times"


class Span(NamedTuple):
    """What one process noted; times are in seconds."""

    pid: int
    kind: str
    name: str
    began: float
    ended: float
    away_s: float
    waited_s: float

    @property
    def ms(self) -> float:
        """Its length."""
        return 1000 * (self.ended - self.began)

    @property
    def own_ms(self) -> float:
        """Its length without the time in which it waited for another process, or for a core."""
        return max(0.0, self.ms - 1000 * (self.away_s + self.waited_s))


class Notes:
    """What the processes of a server noted.

    Args:
        folder: Where their files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: Counter[Path] = Counter()

    def take(self) -> list[Span]:
        """Return what was noted since the last time."""
        found = []
        for path in sorted(self._folder.glob("*.txt")):
            with path.open("rb") as file:
                file.seek(self._read[path])
                lines = file.read()
            # The last line may be about to be written.
            lines = lines[: lines.rfind(b"\n") + 1]
            self._read[path] += len(lines)
            for line in lines.decode().splitlines():
                kind, name, *times = line.split()
                began, ended, away_s, waited_s = map(float, times)
                found.append(Span(int(path.stem), kind, name, began, ended, away_s, waited_s))
        return found


@contextmanager
def installed(folder: Path) -> Iterator[Notes]:
    """Let servers that are started in the block load the plug-in, and return what they note.

    Args:
        folder: Where the plug-in and what it notes go; made here.
    """
    folder.mkdir()
    shutil.copy(engine_times.__file__, folder)
    info = folder / f"{PLUGIN}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{PLUGIN} = engine_times:register\n")
    given = {
        "PYTHONPATH": _added(str(folder), "PYTHONPATH", os.pathsep),
        "VLLM_PLUGINS": _added(PLUGIN, "VLLM_PLUGINS", ","),
        FOLDER: str(folder),
    }
    with patch.dict(os.environ, given):
        yield Notes(folder)


def _added(value: str, variable: str, separator: str) -> str:
    return separator.join(filter(None, [value, os.environ.get(variable, "")]))


def figures(spans: Sequence[Span]) -> dict[str, Any]:
    """Return how long calls, pauses and steps took.

    Args:
        spans: What was noted.

    Returns:
        ``calls``, how many there were by name; and of ``call``, ``pause`` and ``step`` how their times are
        spread, with ``_ms`` behind the name, and ``own_`` before it for their own times.
    """
    kinds: dict[str, list[Span]] = {kind: [] for kind in (CALL, ANSWER, READ, BETWEEN, BEGIN, STEP)}
    for span in spans:
        kinds[span.kind].append(span)
    calls, reads = kinds[CALL], kinds[READ]
    between, begin = kinds[BETWEEN], kinds[BEGIN]
    answers = sorted(kinds[ANSWER], key=lambda one: one.began)
    own = {
        "call": [*with_answers(calls, answers), *(one.own_ms for one in reads)],
        "pause": [*with_answers(between, answers), *(one.own_ms for one in begin)],
        "step": [one.own_ms for one in kinds[STEP]],
    }
    whole = {"call": [*calls, *reads], "pause": [*between, *begin], "step": kinds[STEP]}
    found: dict[str, Any] = {"calls": dict(Counter(one.name for one in whole["call"]))}
    for kind, its in whole.items():
        found[f"{kind}_ms"] = spread_ms([one.ms for one in its])
        found[f"own_{kind}_ms"] = spread_ms(own[kind])
    return found


def with_answers(spans: Sequence[Span], answers: Sequence[Span]) -> list[float]:
    """Return the own times of spans, with those of the workers' answers within them, in milliseconds.

    Args:
        spans: Of the engine.
        answers: Of workers, in the order in which they began. Several workers answer at once: their sum is
            more than they take.
    """
    starts, found = [one.began for one in answers], []
    for span in spans:
        # Of the same process, it is part of the span's own time.
        near = answers[bisect_left(starts, span.began) : bisect_left(starts, span.ended)]
        found.append(span.own_ms + sum(one.own_ms for one in near if one.pid != span.pid))
    return found


def judged(found: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the figures of a time in which requests were under way.

    Args:
        found: What `figures` returned.
    """
    if not (found["pause_ms"]["count"] and found["step_ms"]["count"]):
        return ["expected notes of the engine's steps, got none: was its plug-in loaded?"]
    return [
        f"the longest {kind} took {longest} ms of the engine's own time, more than {PAUSE_MS:g} ms"
        for kind in ("call", "pause")
        if (longest := found[f"own_{kind}_ms"]["most"]) > PAUSE_MS
    ]


def spread_ms(values: Sequence[float]) -> dict[str, float]:
    """Return how many values there are, and the middle and the end of them."""
    ordered = sorted(values) or [0.0]
    at = {"median": 0.5, "p99": 0.99, "p99_9": 0.999, "most": 1.0}
    last = len(ordered) - 1
    return {"count": len(values)} | {
        name: round(ordered[min(last, int(share * len(ordered)))], 2) for name, share in at.items()
    }
