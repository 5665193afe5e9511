"""Change settings while the engine serves."""

from __future__ import annotations

from typing import Any

from sere.integrations.vllm.client.agreement import agree
from sere.integrations.vllm.client.rpc import ask_workers
from sere.integrations.vllm.methods import CONFIGURE


def configure(llm: Any, **changes: Any) -> dict[str, Any]:
    """Change how a running engine re-routes, from one of its next steps on.

    All workers change between the same two steps, or none does: each first prepares the change on the host
    and says what it leads to. Running requests go on.

    Args:
        llm: vLLM's ``LLM`` (or anything with its ``collective_rpc``).
        **changes: ``select_top_k``, ``threshold``, ``active_experts`` (for all layers, or ``{layer index:
            M}`` for some), ``min_gain``, ``tier``, ``layers``, ``keep``, as in `RerouteConfig`;
            ``enabled=False`` to switch off and ``enabled=True`` to switch on again; ``count_only=True`` to
            count experts and re-route none. A tier replaces every ``active_experts`` that was given, and the
            other way round. Other settings are part of compiled code and captured graphs and need a restart.

    Returns:
        The current settings, with ``enabled`` and ``count_only`` among them.

    Raises:
        ConfigError: A setting cannot be changed here, or its value is refused; nothing has changed.
        ConcurrentChange: Another change came in between; that one holds.
        EngineError: A worker failed, or the workers disagree; the text says what holds now.
        UnsupportedEngine: Re-routing is not active in this engine.
    """
    steps = agree(changes)
    call = next(steps)
    while True:
        answers = ask_workers(llm, CONFIGURE, *call)
        try:
            call = steps.send(answers)
        except StopIteration as end:
            settings: dict[str, Any] = end.value
            return settings
