"""Progress that notes what was begun, and interrupts where a test wants it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext


class Interrupting:
    """Raises ``KeyboardInterrupt`` when a given piece of work begins, once.

    Attributes:
        begun: Names of the work, in order.
    """

    def __init__(self, at: int) -> None:
        self.at, self.begun = at, list[str]()

    def __call__(self, name: str, _total: int) -> AbstractContextManager[Callable[[], object]]:
        """Note what begins."""
        self.begun.append(name)
        if len(self.begun) == self.at:
            raise KeyboardInterrupt
        return nullcontext(lambda: None)
