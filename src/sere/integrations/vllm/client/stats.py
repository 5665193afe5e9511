"""Read what re-routing did in a running engine."""

from __future__ import annotations

from typing import Any

from sere.integrations.vllm.client.rpc import ask_workers
from sere.integrations.vllm.engine_stats import EngineStats, merge_answers
from sere.integrations.vllm.methods import STATS


def read_stats(llm: Any, *, reset: bool = False) -> EngineStats:
    """Read the statistics of a running engine; this is where the host waits for the device.

    Args:
        llm: vLLM's ``LLM`` (or anything with its ``collective_rpc``).
        reset: Set all counters to zero after reading.

    Raises:
        UnsupportedEngine: Re-routing is not active in this engine.
    """
    return merge_answers(ask_workers(llm, STATS, reset))
