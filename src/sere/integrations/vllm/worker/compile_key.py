"""Settings of ours that compiled code does not contain, kept out of the key of vLLM's compile cache.

vLLM puts all of ``additional_config`` into that key. Another port of metrics, another table or another M
would each cost a cold compile, although compiled code and captured graphs read them from memory.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sere.integrations.vllm.plugin_config import KEY, section

COMPILED = (
    "backend", "cap", "targets", "use_scale", "merge", "sentinel", "preset", "flatten", "count_experts",
)  # fmt: skip
"""Settings that compiled code holds as constants, or that choose what it contains."""


def keep_settings_out(vllm_config: Any) -> None:
    """Let a worker's configuration leave the other settings out of its hash, which is the key.

    Args:
        vllm_config: vLLM's ``VllmConfig``. It, and what is copied from it, get a class of their own. Nothing
            is put into the object: vLLM makes a drafter's configuration from all that is in there.
    """
    kind: Any = type(vllm_config)
    if not issubclass(kind, _LeavesOut):
        object.__setattr__(vllm_config, "__class__", _leaving_out(kind))


class _LeavesOut:
    """What the class of such a configuration adds to vLLM's."""

    additional_config: Any

    def compute_hash(self, *args: Any, **kwargs: Any) -> str:
        """Return what vLLM's class returns if only `COMPILED` were given."""
        given, values = self.additional_config, section(self)
        kept = {name: value for name, value in dict(values or {}).items() if name in COMPILED}
        object.__setattr__(self, "additional_config", {**given, KEY: kept})
        try:
            found: str = super().compute_hash(*args, **kwargs)  # type: ignore[misc]
        finally:
            object.__setattr__(self, "additional_config", given)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self).__mro__[2], dict(vars(self)))


@cache
def _leaving_out(kind: Any) -> Any:
    return type(kind.__name__, (_LeavesOut, kind), {"__module__": kind.__module__})


def _made_again(kind: type, values: dict[str, Any]) -> Any:
    config: Any = object.__new__(kind)
    vars(config).update(values)
    keep_settings_out(config)
    return config
