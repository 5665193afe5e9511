"""What a worker answers when it is called: an error is an answer too."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sere.errors import ConfigError
from sere.integrations.vllm.worker.state import WorkerState

logger = logging.getLogger("vllm.sere")

Answer = dict[str, Any]


def answering(state: WorkerState, what: str, call: Callable[..., Answer]) -> Callable[..., Answer]:
    """Return a function that answers with an error in place of raising it; `methods` says why.

    It waits for a step that runs, and for whatever else reads or changes what steps count.

    Args:
        state: The worker's state.
        what: What the function does, for the log.
        call: The function.

    Returns:
        What it returns, or ``{"error": text}`` for settings that the caller got wrong, or
        ``{"failure": text}`` for everything else, such as memory that is full or an error of our own.
    """

    def answer(*args: Any) -> Answer:
        try:
            with state.lock:
                return call(*args)
        except ConfigError as error:
            return {"error": str(error)}
        except Exception as error:
            logger.exception("sere: %s failed", what)
            return {"failure": f"rank {state.rank}: {type(error).__name__}: {error}"}

    return answer
