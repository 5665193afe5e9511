"""How long work tells how far it is; what shows it is the caller's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[str, int], AbstractContextManager[Callable[..., object]]]
"""Begins work, given its name and its number of parts; the context gives what is called after each part, or
with a number after so many parts."""

NO_PROGRESS: Progress = lambda _name, _total: nullcontext(lambda: None)  # noqa: E731
"""Shows nothing."""
