"""Say in the engine's log, once for each reason, why nothing was re-routed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sere.integrations.activity import without_numbers
from sere.integrations.vllm import engine_stats
from sere.integrations.vllm.reasons import why_engine_changed_nothing
from sere.reroute.stats import COUNTERS

if TYPE_CHECKING:
    from sere.integrations.vllm.worker.state import Session

logger = logging.getLogger("vllm.sere")

FIRST_LOOK = 200
"""Steps after which the counters are first looked at; then after twice as many, and so on."""

_REROUTED = COUNTERS.index("slots_rerouted")


class Guard:
    """Watches one worker's counters until something has been re-routed under the settings that hold.

    All of it runs between two steps, where steps and layers have counted the same: a step under way cannot
    be taken for one that layers missed. Reading waits for the device, so it is done ever more rarely.

    Args:
        session: The worker's session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._said: set[str] = set()
        self._base: Mapping[str, Any] | None = None
        self._steps, self._due = 0, FIRST_LOOK
        self._done = False

    def restart(self) -> None:
        """Judge only what is counted from now on: settings have changed."""
        self._session.counts.least_budget = None
        self._base = engine_stats.answer(self._session)
        self._steps, self._due = 0, FIRST_LOOK
        self._done = False

    def carry(self, counted: Mapping[str, Any]) -> None:
        """Keep in mind what was counted so far, for the counters are set to zero next."""
        nothing = _difference(counted, counted)
        self._base = _difference(self._base or nothing, counted)

    def step(self) -> None:
        """Count a step that is about to run; look when it is time."""
        self._steps += self._session.enabled
        if self._steps >= self._due:
            self._due *= 2
            self.look()

    def look(self) -> None:
        """Log why nothing was re-routed, if nothing was and this reason has not been logged."""
        if self._done or not self._session.speaks:
            return
        counted = _difference(engine_stats.answer(self._session), self._base)
        sentence = why_engine_changed_nothing(counted)
        if sentence is None:
            self._done = any(layer["counters"][_REROUTED] for layer in counted["layers"])
            return
        reason = without_numbers(sentence)
        if reason not in self._said:
            self._said.add(reason)
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


def _difference(counted: Mapping[str, Any], base: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what was counted beyond a base."""
    if base is None:
        return counted
    steps = {
        name: value if name == "least_budget" else value - base["steps"][name]
        for name, value in counted["steps"].items()
    }
    layers = [
        layer
        | {"counters": [now - then for now, then in zip(layer["counters"], known["counters"], strict=True)]}
        for layer, known in zip(counted["layers"], base["layers"], strict=True)
    ]
    return {**counted, "steps": steps, "layers": layers}
