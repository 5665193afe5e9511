"""Read a worker's counters from any thread, never within a step: for the metrics' port and the log."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from time import monotonic
from typing import Any

import torch

from sere.integrations.vllm.engine_stats import log_line, merge_answers
from sere.integrations.vllm.worker.state import WorkerState

logger = logging.getLogger("vllm.sere")

INTERVAL_S = 1.0
"""Seconds for which a report is given again, however many readers ask."""

_WAIT_S = 1.0


class Reporter:
    """Reports what one worker counted, between two steps, when steps and layers have counted the same.

    A step holds the state's lock, and so does a reader. A reader that waits longer than a second gets the
    last report: a step that hangs must not hang the metrics.

    Args:
        state: The worker's state.
    """

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._readers = threading.Lock()
        self._report: dict[str, Any] | None = None
        self._read_at = 0.0
        self._timer: threading.Timer | None = None
        self._paused = False
        self._stream: Any = None
        self._stream_known = False

    def read(self) -> dict[str, Any]:
        """Return what `WorkerState.report` does, at most about a second old unless a step takes longer."""
        with self._readers:
            due = self._report is None or monotonic() - self._read_at >= INTERVAL_S
            if due and self._state.lock.acquire(timeout=-1 if self._report is None else _WAIT_S):
                try:
                    with self._between_steps():
                        self._report, self._read_at = self._state.report(), monotonic()
                finally:
                    self._state.lock.release()
            assert self._report is not None
            return self._report

    def pause(self) -> None:
        """Start no timer, and stop the one that runs: steps that warm up follow, maybe captured ones."""
        # A line that is being logged ends first.
        with self._state.lock:
            self._paused = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def resume(self) -> None:
        """Log again from the next step on."""
        self._paused = False

    def after_step(self) -> None:
        """Let the line of statistics be logged ``log_seconds`` from now, unless it is due sooner.

        Called by the thread that runs the steps, while it holds the lock.
        """
        if not self._stream_known:
            self._note_stream()
        if self._timer is not None or self._paused:
            return
        every = self._state.plugin_config.log_seconds
        if every and self._state.vllm_config.parallel_config.rank == 0:
            # Of what is gone until then, nothing is to be logged, and nothing is kept alive for it.
            self._timer = threading.Timer(every, _log_if_there, [weakref.ref(self)])
            self._timer.daemon = True
            self._timer.start()

    def log(self) -> None:
        """Log the line of statistics now, and why nothing was re-routed if nothing was."""
        with self._between_steps():
            self._timer = None
            self._state.guard.look()
            report = self._state.report()
        logger.info("sere: %s", log_line(merge_answers([report])))

    def log_if_due(self) -> None:
        """Log the line, unless its timer fired while steps that warm up began."""
        with self._state.lock:
            if not self._paused:
                self.log()

    def last_line(self) -> None:
        """Log the line of statistics when the worker shuts down, if steps ran since the last one."""
        timer = self._timer
        if timer is not None:
            timer.cancel()
            # The worker may shut down because its device has failed, which must not become another error.
            with suppress(Exception):
                self.log()

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Keep steps from starting, and read after what the last one has put on the device."""
        with self._state.lock, nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            yield

    def _note_stream(self) -> None:
        """Remember on which stream the steps run; other threads have another one."""
        self._stream_known = True
        device = None if self._state.budgets is None else self._state.budgets.tensor.device
        if device is not None and device.type == "cuda":
            self._stream = torch.cuda.current_stream(device)


def _log_if_there(reporter: weakref.ref[Reporter]) -> None:
    found = reporter()
    if found is not None:
        found.log_if_due()
