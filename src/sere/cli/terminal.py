"""The terminal behind a stream: how wide it is, and whether what was written on it can be written over."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TextIO

# Of a terminal that does not know its own size.
_FALLBACK = (100, 24)
# Longer lines of prose are hard to read.
_WIDEST_PROSE = 110


def columns() -> int | None:
    """Return the columns of the terminal that stdout is; None if it is none, as in a pipe or a file.

    The variable ``COLUMNS`` of the environment overrides what the terminal says of itself.
    """
    return shutil.get_terminal_size(_FALLBACK).columns if sys.stdout.isatty() else None


def writes_over(stream: TextIO) -> bool:
    """Return whether a stream is a terminal on which lines can be written over, as a progress bar does.

    A terminal with ``TERM=dumb``, such as the shell of an editor, only adds lines.

    Args:
        stream: stdout or stderr.
    """
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paragraph(text: str, *, elsewhere: int | None = None) -> str:
    """Fill a paragraph to the terminal's width.

    Args:
        text: The paragraph.
        elsewhere: The width where stdout is no terminal; None leaves the paragraph's own line breaks.
    """
    width = columns()
    if width is None and elsewhere is None:
        return text
    width = min(width or elsewhere or _WIDEST_PROSE, _WIDEST_PROSE)
    return textwrap.fill(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)
