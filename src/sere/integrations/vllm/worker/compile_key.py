"""Settings of ours that compiled code does not contain, kept out of the key of vLLM's compile cache.

vLLM puts all of ``additional_config`` into that key. Another port of metrics, another table or another M
would each cost a cold compile, although compiled code and captured graphs read them from memory.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from sere.integrations.vllm.plugin_config import KEY, section

COMPILED = ("backend", "cap", "targets", "use_scale", "merge", "sentinel", "preset", "flatten")
"""Settings that compiled code holds as constants, or that choose what it contains."""


def keep_settings_out(vllm_config: Any) -> None:
    """Let a worker's configuration leave the other settings out of its hash, which is the key.

    Args:
        vllm_config: vLLM's ``VllmConfig``; only this object changes.
    """
    # Bound, so that a copy of the object hashes itself; past a check of assignments, because it is no field.
    object.__setattr__(vllm_config, "compute_hash", MethodType(compute_hash, vllm_config))


def compute_hash(self: Any, *args: Any, **kwargs: Any) -> str:
    """Return what ``VllmConfig.compute_hash`` returns if only `COMPILED` were given."""
    given, values = self.additional_config, section(self)
    kept = {name: value for name, value in dict(values or {}).items() if name in COMPILED}
    object.__setattr__(self, "additional_config", {**given, KEY: kept})
    try:
        found: str = type(self).compute_hash(self, *args, **kwargs)
    finally:
        object.__setattr__(self, "additional_config", given)
    return found
