"""What vLLM's expert kernels support: duplicate ids within one token's top-k, or freed slots of id -1."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from sere.config import RerouteConfig
from sere.errors import ConfigError, UnsupportedEngine
from sere.integrations.vllm.start import versions
from sere.integrations.vllm.worker.layer import RoutedLayer

# Kernels that treat each slot by itself, so that one token's top-k may hold an id twice. The CPU kernel
# was run; the others were read. Not among them on purpose: triton_kernels (OAITriton*), which counts a
# token's experts in a bit set, FlashInfer TRT-LLM, which keeps one slot per token and expert, and all that
# could not be determined (FlashInfer CUTLASS, AITER, the quantized CPU kernels).
SUPPORTS_DUPLICATES = frozenset(
    {
        # The three after the first (AMX, NEON, VSX) are subclasses with other tile sizes and the same call.
        "CPUUnquantizedExperts",
        "X86CPUUnquantizedExperts", "ArmCPUUnquantizedExperts", "PowerCPUUnquantizedExperts",
        "TritonExperts", "TritonWNA16Experts", "MarlinExperts", "DeepGemmExperts",
        "TritonOrDeepGemmExperts", "CutlassExpertsFp8", "CutlassExpertsFp4", "TritonOrCutlassExperts",
    }
)  # fmt: skip
# Kernels that skip a slot of id -1 in a real row. Elsewhere it reads or writes out of bounds, or its
# output is summed without having been written. What sere does by itself is in freed_slots.py.
SUPPORTS_SENTINEL = frozenset({"DeepGemmExperts"})

_REASON = "sere needs a decomposed backend: it changes the routing between the router and the experts"


def fit_to_kernel(config: RerouteConfig, kernel: str | None, *, merge_given: bool) -> RerouteConfig:
    """Return the settings with the ``merge`` mode that an expert kernel supports.

    A kernel that is not known to handle duplicate ids within one token's top-k gets distinct ones: merged
    slots are filled with other active experts at weight 0. `needs_full_rows` says that there must be enough.

    Args:
        config: The settings.
        kernel: Class name of the expert kernel, or None where it cannot be told.
        merge_given: Whether the user chose ``config.merge``.

    Raises:
        ConfigError: The user's choice is one that this kernel does not support.
    """
    if kernel in SUPPORTS_DUPLICATES and config.merge != "sentinel":
        return config
    if config.merge == "sentinel" and (kernel not in SUPPORTS_SENTINEL or config.sentinel != -1):
        raise ConfigError(
            f"merge='sentinel' (sentinel {config.sentinel}): the expert kernel {kernel or 'in use'} is not "
            "known to handle such ids; omit merge and sere picks a mode that this kernel supports"
        )
    if config.merge == "sentinel":
        return config
    if merge_given and config.merge != "distinct":
        raise ConfigError(
            f"merge={config.merge!r}: the expert kernel {kernel or 'in use'} is not known to handle "
            "duplicate ids within one token's top-k; use merge='distinct', or omit merge"
        )
    return dataclasses.replace(config, merge="distinct")


def needs_full_rows(config: RerouteConfig, kernel: str | None) -> bool:
    """Whether every row must have K different experts to choose from, so that M has to be at least K.

    Args:
        config: The settings, fitted to the kernel.
        kernel: Class name of the expert kernel, or None where it cannot be told.
    """
    return config.merge == "distinct" and kernel not in SUPPORTS_DUPLICATES


def check_duplicates(policy: str, kernel: str | None) -> None:
    """Refuse a rule whose rows may hold an id twice where the expert kernel may not support that.

    Args:
        policy: The rule's name.
        kernel: Class name of the expert kernel, or None where it cannot be told.

    Raises:
        UnsupportedEngine: The kernel is not known to support it.
    """
    if kernel not in SUPPORTS_DUPLICATES:
        raise UnsupportedEngine(
            f"{policy}: the expert kernel {kernel or 'in use'} is not known to handle duplicate ids within "
            "one token's top-k; use sere, whose merge mode is fitted to the kernel, or Transformers"
        )


_UNCHANGED = "re-routing cannot change anything"


def kernel_of(layer: RoutedLayer, consequence: str = _UNCHANGED) -> str | None:
    """Return the class name of a layer's expert kernel, or None where it cannot be told.

    Args:
        layer: The layer, loaded.
        consequence: What follows for a kernel that routes inside itself, for the error text.

    Raises:
        UnsupportedEngine: The layer routes inside its kernel.
    """
    kernel, monolithic = versions.expert_kernel(layer.runner)
    if monolithic:
        refuse_monolithic(layer.name, versions.quant_method(layer.runner), kernel, consequence)
    return versions.kernel_name(kernel)


def refuse_monolithic(name: str, method: Any, kernel: Any, consequence: str = _UNCHANGED) -> None:
    """Say that a layer routes inside its kernel.

    Raises:
        UnsupportedEngine: Always; the text names layer, kernel and the flag to set.
    """
    raise UnsupportedEngine(
        f"{name}: its expert kernel {type(kernel).__name__} ({type(method).__name__}) routes inside itself, "
        f"so that {consequence}; start with --moe-backend triton (marlin for MXFP4 "
        "checkpoints), which has a separate router"
    )


@contextmanager
def decomposed_kernels(experts_base: Any) -> Iterator[None]:
    """Let vLLM choose, while the model is built, among the kernels that leave routing to the router.

    Args:
        experts_base: vLLM's ``FusedMoEExperts``, whose ``is_supported_config`` every choice of a kernel asks.
    """
    original = experts_base.__dict__["is_supported_config"]
    ask = original.__func__ if isinstance(original, staticmethod) else original
    builder = get_ident()

    def is_supported_config(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if get_ident() == builder and cls.is_monolithic():
            return False, _REASON
        return ask(cls, *args, **kwargs)

    experts_base.is_supported_config = staticmethod(is_supported_config)
    try:
        yield
    finally:
        experts_base.is_supported_config = original
