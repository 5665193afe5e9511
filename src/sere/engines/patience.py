"""How long to wait for another process."""

from __future__ import annotations

import time

# A machine that is shared may stand still for minutes: whoever looks each second then counts one look.
_LOOK_S = 10.0


class Patience:
    """Seconds to wait for something that is looked for again and again.

    The time between two looks counts only up to ten seconds, so that nobody is given up while the whole
    machine stood still.

    Args:
        seconds: How long to wait.
    """

    def __init__(self, seconds: float) -> None:
        self._left, self._looked = seconds, time.monotonic()

    def lasts(self) -> bool:
        """Return whether there is time for another look."""
        now = time.monotonic()
        self._left -= min(now - self._looked, _LOOK_S)
        self._looked = now
        return self._left > 0
