"""Progress of work whose length is only guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sere.progress import Progress


@contextmanager
def shared(progress: Progress, name: str, total: int) -> Iterator[Callable[[int], Callable[[], object]]]:
    """Show progress of work of about so many units.

    Yields:
        Takes a number of units and returns what is called after each: more calls than that show nothing.
    """
    with progress(name, total) as tick:

        def share(units: int) -> Callable[[], object]:
            left = iter(range(units))
            return lambda: None if next(left, None) is None else tick()

        yield share
