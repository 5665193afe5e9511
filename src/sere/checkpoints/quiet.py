"""Keep Transformers' bars and advice apart from our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_bar(*, shown: bool) -> Iterator[None]:
    """Let Transformers show its progress bar while the block runs, or not."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    if before and not shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if before and not shown:
            logging.enable_progress_bar()


@contextmanager
def errors_only() -> Iterator[None]:
    """Silence Transformers' warnings while the block runs: those that matter are raised as errors."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)
