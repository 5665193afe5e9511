"""Features of the engine that cannot be combined with re-routing, each with its reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from sere.errors import UnsupportedEngine


def check_features(vllm_config: Any, *, allow_untested: bool) -> None:
    """Refuse a configuration in which rows of a step would be taken for others.

    Args:
        vllm_config: vLLM's ``VllmConfig``.
        allow_untested: Let pass what may work but was never tried.

    Raises:
        UnsupportedEngine: Re-routing does not support a feature that is on; the text says why.
    """
    for name, reason, way_out in _wrong(vllm_config):
        raise UnsupportedEngine(f"{name}: {reason}; {way_out}")
    if allow_untested:
        return
    for name, reason in _untested(vllm_config):
        raise UnsupportedEngine(
            f'{name}: {reason}; switch it off, or set "allow_untested": true among the settings of sere'
        )


def _wrong(vllm_config: Any) -> Iterator[tuple[str, str, str]]:
    parallel = vllm_config.parallel_config
    if getattr(parallel, "enable_dbo", False) or getattr(parallel, "use_ubatching", False):
        yield (
            "dual batch overlap",
            "each half of the batch would read the budgets of the first half's rows",
            "start without --enable-dbo",
        )
    if getattr(parallel, "use_sequence_parallel_moe", False):
        yield (
            "sequence-parallel MoE",
            "each rank sees a part of the rows only, so ranks would read budgets of other rows",
            "start without expert parallelism, or with a data-parallel size of 1",
        )
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        yield (
            "prefill context parallelism",
            "each rank sees a part of the rows only, so ranks would read budgets of other rows",
            "start without --prefill-context-parallel-size",
        )
    additional = getattr(vllm_config, "additional_config", None)
    if isinstance(additional, Mapping) and additional.get("decode_backend") == "latency_specialized":
        yield (
            "decode_backend latency_specialized",
            "its decode steps choose their experts without vLLM's router, so that nothing would be re-routed",
            "start without decode_backend in additional_config",
        )
    if os.environ.get("VLLM_BATCH_INVARIANT", "0") not in ("", "0"):
        yield (
            "VLLM_BATCH_INVARIANT",
            "re-routing makes a request's output depend on the batch it runs in, which this mode rules out",
            "start without VLLM_BATCH_INVARIANT, or without sere",
        )


def _untested(vllm_config: Any) -> Iterator[tuple[str, str]]:
    if getattr(vllm_config.parallel_config, "data_parallel_size", 1) > 1:
        yield (
            "data parallelism",
            "where an expert kernel gathers the ranks' rows before routing, budgets would meet other ranks' "
            "rows, and this was never run",
        )
