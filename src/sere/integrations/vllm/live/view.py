"""What the live page and ``sere top`` show of an engine: one answer for all who look."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from time import time
from typing import Any

from sere.integrations.vllm.live.estimate import estimate
from sere.integrations.vllm.live.history import GAP_S, KEPT_S, WINDOW_S, History
from sere.integrations.vllm.live.sample import Sample, means
from sere.integrations.vllm.reasons import why_engine_changed_nothing
from sere.step_time import Ceilings

FORMAT = 2
"""Of the answer; another number means that it has other names in it."""


class Live:
    """Keeps what the page shows up to date with the answers that an engine gives, and asks for none.

    Safe to use from several threads.

    Args:
        title: What the model is called, or None.
        read_only: Why nothing can be changed here, or None.
        ceilings: Those of the engine's machine; None if they are not known.
        processes: How many server processes share the engine. Each keeps lines and changes of its own.
    """

    def __init__(
        self,
        title: str | None = None,
        read_only: str | None = None,
        ceilings: Ceilings | None = None,
        processes: int = 1,
    ) -> None:
        self._title, self._read_only, self._ceilings = title, read_only, ceilings
        self._processes = processes
        self._history = History()
        self._lock = threading.Lock()
        self._now = "null"
        self._run = secrets.token_hex(8)

    def add(self, joined: Mapping[str, Any], at: float | None = None) -> None:
        """Take an engine's answer.

        Args:
            joined: What `join_answers` returned.
            at: When it was given, in seconds since 1970; now if None.
        """
        sample = Sample.of(joined, time() if at is None else at)
        with self._lock:
            self._history.add(sample, joined["expert_bytes"])
            own = {"title": self._title, "run": self._run, "server_processes": self._processes}
            self._now = json.dumps(now(joined, sample, self._history, self._ceilings) | own)

    def note_reset(self) -> None:
        """Note that the counters have just been set to zero."""
        with self._lock:
            self._history.note_reset(time())

    def body(self, since: float = 0.0) -> str:
        """Return what there is to show, as JSON.

        Args:
            since: The points of the lines after this moment, in seconds since 1970; 0 for all that are kept.

        Returns:
            ``now``, ``read_only`` and ``points``. A ``run`` in ``now`` that differs from the one before means
            another process, such as a server that was started again, or another one of its
            ``server_processes``: its points do not continue the others.
        """
        with self._lock:
            points = ",".join(self._history.points_after(since))
            return f'{{"now":{self._now},"read_only":{json.dumps(self._read_only)},"points":[{points}]}}'


def since_of(text: str | None) -> float:
    """Return the moment in a request's ``since``; 0 for none, and for what is no number."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def now(
    joined: Mapping[str, Any], sample: Sample, history: History, ceilings: Ceilings | None = None
) -> dict[str, Any]:
    """Return what holds at present, JSON-ready.

    Args:
        joined: What `join_answers` returned.
        sample: The same as a sample.
        history: With this sample added.
        ceilings: Those of the engine's machine; None if they are not known.

    Returns:
        The engine's settings and sizes, its steps by kind since the last reset, and under ``recent`` the
        means of the last seconds. Where no step ran in these, ``recent`` is since the last reset, and its
        ``seconds`` None.
    """
    found, seconds = history.recent() or (sample, None)
    layers = [_layer(layer, found, sample) for layer in joined["layers"]]
    read = [(layer["before"], layer["after"]) for layer in layers if layer["before"] is not None]
    saved = None if joined["expert_bytes"] is None else joined["expert_bytes"] * found.experts_not_read()
    recent = {"seconds": seconds, "bytes": saved, "steps": found.by_kind()} | found.means()
    names = ("num_experts", "top_k", "kernel", "expert_bytes", "rest_bytes", "request_tiers", "table")
    return {
        "format": FORMAT,
        "at": sample.at,
        "kept_s": KEPT_S,
        "gap_s": GAP_S,
        "window_s": WINDOW_S,
        "enabled": joined["enabled"],
        "count_only": joined["count_only"],
        "settings": sample.settings,
        "steps": sample.by_kind(),
        "steps_by_tier": joined["steps"]["by_tier"],
        "recent": recent,
        "layers": layers,
        "unseen": [layer["index"] for layer in joined["layers"] if not layer["counters"][0]],
        "estimate": estimate(read, joined, found.means(), ceilings),
        "nothing_changed": why_engine_changed_nothing(joined),
        "changes": list(history.changes),
    } | {name: joined[name] for name in names}


def _layer(layer: Mapping[str, Any], found: Sample, sample: Sample) -> dict[str, Any]:
    """Return what one layer did: means of the last seconds, and its steps since the last reset."""
    index = layer["index"]
    most = layer["settings"]["active_experts"]
    return {"index": index, "steps": sample.layers[index][0], "most": most} | means(found.layers[index])
