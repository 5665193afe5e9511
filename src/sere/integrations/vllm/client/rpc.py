"""Call what the plug-in has put on an engine's workers."""

from __future__ import annotations

from typing import Any

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.plugin_config import section

NOT_ACTIVE = "re-routing is not active in this engine: start it with settings under additional_config['sere']"
DISABLED = (
    f"{NOT_ACTIVE}, without SERE_DISABLE in its environment, and with sere among VLLM_PLUGINS if that is set"
)


def ask_workers(llm: Any, method: str, *args: Any) -> list[Any]:
    """Call a method of all workers and return their answers.

    Args:
        llm: vLLM's ``LLM`` (or anything with its ``collective_rpc``).
        method: The method's name.
        *args: Its arguments.

    Raises:
        UnsupportedEngine: Re-routing is not active in this engine.
    """
    config = getattr(getattr(llm, "llm_engine", llm), "vllm_config", None)
    if config is not None and section(config) is None:
        raise UnsupportedEngine(NOT_ACTIVE)
    try:
        return list(llm.collective_rpc(method, args=args))
    except Exception as error:
        if not is_missing(method, error):
            raise
        raise UnsupportedEngine(DISABLED) from error


async def ask_engines(client: Any, method: str, *args: Any) -> list[Any]:
    """Call a method of all workers of a server and return their answers; its data-parallel engines' too.

    Args:
        client: vLLM's ``EngineClient``.
        method: The method's name.
        *args: Its arguments.

    Raises:
        UnsupportedEngine: Re-routing is not active in this engine.
    """
    parallel = getattr(getattr(client, "vllm_config", None), "parallel_config", None)
    # vLLM's own call of several engines returns what the first of them says.
    ask_all = getattr(getattr(client, "engine_core", None), "call_utility_all_async", None)
    try:
        if ask_all is None or getattr(parallel, "data_parallel_size", 1) == 1:
            return list(await client.collective_rpc(method, args=args))
        answers = await ask_all("collective_rpc", method, None, args, None)
        return [answer for engine in answers for answer in engine]
    except Exception as error:
        if not is_missing(method, error):
            raise
        raise UnsupportedEngine(DISABLED) from error


def is_missing(method: str, error: Exception) -> bool:
    """Whether a worker's error says that the plug-in has not put its method there."""
    # An error of another process arrives as its text; vLLM's executors word it differently.
    return any(
        text in str(error)
        for text in (f"Method {method!r} is not implemented", f"has no attribute {method!r}")
    )
