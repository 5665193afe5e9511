"""Say in the engine's log, once for each reason, why nothing was re-routed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from sere.integrations.activity import without_numbers
from sere.integrations.vllm.reasons import rerouted_slots, why_engine_changed_nothing
from sere.integrations.vllm.step_counts import counted_since

logger = logging.getLogger("vllm.sere")

FIRST_LOOK = 200
"""Steps after which the counters are first looked at; then after twice as many, and so on."""

Report = Mapping[str, Any]
"""What `WorkerState.report` returns."""


class Guard:
    """Watches one worker's counters until something has been re-routed under the current settings.

    All of it runs between two steps, when steps and layers have counted the same: a step under way cannot
    be taken for one that layers missed. Reading waits for the device, so it is done ever more rarely.

    Args:
        read: Returns what the worker has counted since its start or the last reset.
        speaks: Whether this worker writes to the log.
    """

    def __init__(self, read: Callable[[], Report], *, speaks: bool) -> None:
        self._read, self._speaks = read, speaks
        self._logged: set[str] = set()
        self._base: Report | None = None
        self._steps, self._due = 0, FIRST_LOOK
        self._done = False

    def restart(self) -> None:
        """Judge only what is counted from now on: settings have changed."""
        self._base = self._read()
        self._steps, self._due = 0, FIRST_LOOK
        self._done = False

    def carry(self, counted: Report) -> None:
        """Remember what was counted so far, because the counters are set to zero next."""
        zero = _difference(counted, counted)
        self._base = _difference(self._base or zero, counted)

    def step(self) -> None:
        """Count a step that is about to run; look when it is time."""
        self._steps += 1
        if self._steps >= self._due:
            self._due *= 2
            self.look()

    def look(self) -> None:
        """Log why nothing was re-routed, if nothing was and this reason has not been logged."""
        if self._done or not self._speaks:
            return
        counted = _difference(self._read(), self._base)
        sentence = why_engine_changed_nothing(counted)
        if sentence is None:
            self._done = rerouted_slots(counted) > 0
            return
        reason = without_numbers(sentence)
        if reason not in self._logged:
            self._logged.add(reason)
            logger.warning("sere: %s", sentence)

    def last_look(self) -> None:
        """Look when the worker shuts down."""
        # It may do so because its device has failed, which must not become another error.
        with suppress(Exception):
            self.look()

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Judge nothing of what is run meanwhile."""
        self._done = True
        try:
            yield
        finally:
            self.restart()


def _difference(counted: Report, base: Report | None) -> Report:
    """Return what was counted beyond a base."""
    if base is None:
        return counted
    steps = counted_since(counted["steps"], base["steps"])
    layers = [
        layer
        | {"counters": [now - then for now, then in zip(layer["counters"], known["counters"], strict=True)]}
        for layer, known in zip(counted["layers"], base["layers"], strict=True)
    ]
    return {**counted, "steps": steps, "layers": layers}
