"""Read what re-routing did in a running engine."""

from __future__ import annotations

from typing import Any

from sere.integrations.vllm.client.rpc import ask_workers
from sere.integrations.vllm.engine_stats import EngineStats, merge_answers
from sere.integrations.vllm.expert_counts import join_expert_counts
from sere.integrations.vllm.methods import EXPERTS, STATS
from sere.reroute.expert_counts import ExpertCounts


def read_stats(llm: Any, *, reset: bool = False) -> EngineStats:
    """Read the statistics of a running engine; this is where the host waits for the device.

    Args:
        llm: vLLM's ``LLM`` (or anything with its ``collective_rpc``).
        reset: Set all counters to zero after reading.

    Raises:
        UnsupportedEngine: Re-routing is not active in this engine.
    """
    return merge_answers(ask_workers(llm, STATS, reset))


def read_expert_counts(llm: Any) -> tuple[ExpertCounts, ...]:
    """Read how often each expert was chosen and ran; this is where the host waits for the device.

    `read_stats` with ``reset=True`` sets these counts to zero, too.

    Args:
        llm: vLLM's ``LLM`` (or anything with its ``collective_rpc``).

    Returns:
        One entry per MoE layer, by index.

    Raises:
        EngineError: A worker failed, or the workers hold different settings.
        UnsupportedEngine: Re-routing is not active in this engine, or it was started without
            ``count_experts``.
    """
    return join_expert_counts(ask_workers(llm, EXPERTS))
