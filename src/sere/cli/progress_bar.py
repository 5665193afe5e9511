"""Progress with time left, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[], object]]:
    """Show a bar while the block runs; what it gives is called after each of ``total`` parts.

    A terminal shows the bar with the time left; elsewhere one line at the end says that the part is done.

    Args:
        name: What stands before the bar.
        total: Parts of the whole.
    """
    with tqdm(total=total, desc=name, leave=False, disable=not sys.stderr.isatty(), file=sys.stderr) as shown:
        yield shown.update
        took = shown.format_interval(shown.format_dict["elapsed"]) if not shown.disable else None
    print(f"{name}: done" + (f" in {took}" if took else ""), file=sys.stderr, flush=True)
