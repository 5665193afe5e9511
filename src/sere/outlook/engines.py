"""Whether the installed vLLM has a model's architecture; vLLM is not imported, which takes long."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from sere.errors import SereError, name_some
from sere.integrations.vllm.start.versions import check_version, engine_device, engine_version

_REGISTRY = Path("model_executor", "models", "registry.py")


def ask_vllm(architectures: Sequence[str]) -> tuple[bool | None, str]:
    """Return whether the installed vLLM serves a model with the plug-in, as far as its list of models says.

    Args:
        architectures: Those that ``config.json`` names.

    Returns:
        True, False, or None if vLLM is not installed or its list cannot be read; and the reason.
    """
    version = engine_version()
    if version is None:
        return None, "not installed here, so it is not known whether it has this architecture"
    try:
        check_version(version, device_type=engine_device(), allow_untested=False)
    except SereError as error:
        return False, str(error)
    known = _known()
    if known is None:
        return None, f"{version}: its list of models cannot be read"
    found = [name for name in architectures if name in known]
    if not found:
        named = name_some(architectures) or "none"
        return (
            False,
            f"{version} does not have the architecture (config.json names {named}); a newer release may",
        )
    return True, (
        f"{version} has {found[0]}; the plug-in re-routes layers with vLLM's own routers, and starting the "
        "engine names any that it cannot"
    )


def _known() -> frozenset[str] | None:
    """Return the architectures of the installed vLLM's list of models; None if it has no such list."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / _REGISTRY).read_text(encoding="utf-8")
    except OSError:
        return None
    # Entries look like "Qwen3MoeForCausalLM": ("qwen3_moe", "Qwen3MoeForCausalLM").
    return frozenset(re.findall(r'^\s+"(\w+)": \(', text, re.MULTILINE)) or None
