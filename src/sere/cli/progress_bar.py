"""Progress with time left, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from tqdm import tqdm

from sere.cli.output import say
from sere.cli.terminal import writes_over

# Seconds between two lines where there is no bar.
_EVERY = 60.0


@contextmanager
def bar(name: str, total: int) -> Iterator[Callable[..., object]]:
    """Show progress while the block runs; call what it yields after each of ``total`` parts, or several.

    On a terminal this is a bar of its width, without colors. Elsewhere, and with ``TERM=dumb``, it is a line
    about once a minute. Both show the time left, and a line at the end says how long it took.

    Args:
        name: The text before the bar.
        total: The number of parts.
    """
    started = monotonic()
    if writes_over(sys.stderr):
        with tqdm(total=total, desc=name, leave=False, file=sys.stderr, dynamic_ncols=True) as shown:
            yield shown.update
    else:
        yield _Lines(name, total, started).tick
    say(f"{name}: done in {_interval(monotonic() - started)}")


class _Lines:
    """Prints one line a minute: parts done, time passed, time left."""

    def __init__(self, name: str, total: int, started: float) -> None:
        self.name, self.total, self.started = name, total, started
        self.done, self.printed = 0, started

    def tick(self, parts: int = 1) -> None:
        """Count parts; print a line if the last one is a minute ago."""
        self.done += parts
        now = monotonic()
        if now - self.printed < _EVERY or not self.done:
            return
        self.printed = now
        passed = now - self.started
        left = passed / self.done * max(0, self.total - self.done)
        say(
            f"{self.name}: {self.done} of {self.total}, {_interval(passed)} passed, about "
            f"{_interval(left)} left"
        )


def _interval(seconds: float) -> str:
    return str(tqdm.format_interval(seconds))
