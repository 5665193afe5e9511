"""Re-routing in vLLM: a plug-in that vLLM finds by itself, and the calls that read and change it.

Importing this imports neither vLLM nor PyTorch, because every process of vLLM loads the plug-in, also without
re-routing. What an engine does with it is described in ``docs/vllm-internals.md``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sere.integrations.vllm.client.configure import configure
    from sere.integrations.vllm.client.stats import read_expert_counts, read_stats

__all__ = ["configure", "read_expert_counts", "read_stats"]

_HOMES = {
    "configure": "sere.integrations.vllm.client.configure",
    "read_expert_counts": "sere.integrations.vllm.client.stats",
    "read_stats": "sere.integrations.vllm.client.stats",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
