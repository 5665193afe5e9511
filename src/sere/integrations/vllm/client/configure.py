"""Change settings while the engine serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sere.errors import ConfigError
from sere.integrations.vllm.client.rpc import ask_workers
from sere.integrations.vllm.methods import CONFIGURE


def configure(llm: Any, **changes: Any) -> dict[str, Any]:
    """Change how a running engine re-routes, from its next step on.

    All workers change between the same two steps. Running requests go on; a value that is refused changes
    nothing.

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
        ConfigError: A setting cannot be changed here, or its value is refused.
        UnsupportedEngine: Re-routing is not active in this engine.
    """
    return agreed_settings(ask_workers(llm, CONFIGURE, changes))


def agreed_settings(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the workers agree on, or raise what they say is wrong.

    Raises:
        ConfigError: A worker refused the change.
    """
    for answer in answers:
        if "error" in answer:
            raise ConfigError(answer["error"])
    return dict(answers[0])
