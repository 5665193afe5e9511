"""How much of a CPU's memory an engine of this process takes: what others leave, and what it can fill."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_SHARE_OF_FREE = 0.85
# Layers of different kinds share blocks, of which some stay empty.
_SPARE = 2


def memory_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the share of a CPU's memory that an engine may take: vLLM's own is more than others may leave.

    With it, an engine starts beside other processes, or after another engine of this process.

    Args:
        options: Arguments of vLLM's ``LLM``; if they or the environment say how much, nothing is returned.
    """
    said = {"gpu_memory_utilization", "kv_cache_memory_bytes"} & options.keys()
    if said or torch.cuda.is_available() or "VLLM_CPU_KVCACHE_SPACE" in os.environ:
        return {}
    import psutil

    memory = psutil.virtual_memory()
    return {"gpu_memory_utilization": round(_SHARE_OF_FREE * memory.available / memory.total, 3)}


@contextmanager
def no_more_than_it_fills() -> Iterator[None]:
    """Let engines that start meanwhile take less than their share if all their requests fill less.

    vLLM for CPUs writes zeros into its whole KV cache. It takes the share whatever the model, so that a tiny
    one would hold most of a machine's memory. With prefix caching more can be of use: the share stays.
    """
    from vllm.v1.executor.abstract import Executor

    own = Executor.determine_available_memory

    def determine_available_memory(self: Any) -> list[int]:
        found: list[int] = own(self)
        if self.vllm_config.cache_config.enable_prefix_caching:
            return found
        # A rank of a pipeline has blocks for the kinds of layers of all ranks, whichever are its own.
        layers = {name: layer for rank in self.get_kv_cache_specs() for name, layer in rank.items()}
        filled = _filled(self.vllm_config, list(layers.values()))
        return [min(share, filled) for share in found]

    Executor.determine_available_memory = determine_available_memory
    try:
        yield
    finally:
        Executor.determine_available_memory = own


def _filled(config: Any, layers: Sequence[Any]) -> int:
    """Return the bytes of KV cache that all requests of an engine can fill at once, and some to spare.

    Args:
        config: The engine's configuration.
        layers: vLLM's description of each layer's cache, of all ranks.
    """
    # vLLM makes all layers' blocks as large as the largest.
    block = max((layer.page_size_bytes for layer in layers), default=1)
    blocks: int = sum(-(-layer.max_memory_usage_bytes(config) // block) + 1 for layer in layers)
    return _SPARE * blocks * block * int(config.scheduler_config.max_num_seqs)
