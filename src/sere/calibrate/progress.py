"""A progress bar with time left, on stderr, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from sere.calibrate.config import ShowProgress


class Bar(Protocol):
    """The part of a progress bar that calibration uses."""

    def update(self, n: int) -> object:
        """Count ``n`` more units as done."""


class _NoBar:
    def update(self, n: int) -> object:
        return n


@dataclass(frozen=True, slots=True)
class _Callers:
    """Hands what is done to the caller's own display."""

    update: Callable[..., object]


@contextmanager
def progress_bar(wanted: ShowProgress, total: int, label: str, *, done: int = 0) -> Iterator[Bar]:
    """Show progress while the block runs.

    Args:
        wanted: True shows it on a terminal only, "always" anywhere, False nowhere; or what shows it instead.
        total: Number of units, finished ones included.
        label: Text before the bar.
        done: Units done by an earlier run.

    Yields:
        The bar; nothing is shown if tqdm is not installed.
    """
    if callable(wanted):
        with wanted(label, total - done) as update:
            yield _Callers(update)
        return
    try:
        from tqdm import tqdm
    except ImportError:
        wanted = False
    if wanted is False:
        yield _NoBar()
        return
    # disable=None is tqdm's word for "only on a terminal".
    quiet = False if wanted == "always" else None
    with tqdm(total=total, initial=done, desc=label, unit="tok", unit_scale=True, disable=quiet) as bar:
        yield bar
