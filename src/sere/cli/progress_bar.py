"""Progress with time left, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from sere.cli.output import say


@contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[], object]]:
    """Show a bar while the block runs; call what it yields after each of ``total`` parts.

    On a terminal the bar shows the time left; elsewhere, one line at the end says that the work is done.

    Args:
        name: The text before the bar.
        total: The number of parts.
    """
    with tqdm(total=total, desc=name, leave=False, disable=not sys.stderr.isatty(), file=sys.stderr) as shown:
        yield shown.update
        took = shown.format_interval(shown.format_dict["elapsed"]) if not shown.disable else None
    say(f"{name}: done" + (f" in {took}" if took else ""))
