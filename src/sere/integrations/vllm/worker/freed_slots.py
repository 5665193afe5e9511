"""From how many rows on the slots of a step that carry nothing get an id that the expert kernel skips.

Source: vLLM 0.32.0, ``model_executor/layers/fused_moe``; docs/kernel.md, "Slots that expert kernels skip".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from sere.config import MOST_INT, RerouteConfig
from sere.integrations.vllm.start import versions
from sere.integrations.vllm.worker.expert_kernels import SUPPORTS_SENTINEL
from sere.integrations.vllm.worker.layer import RoutedLayer
from sere.integrations.vllm.worker.rules import Rules
from sere.policies.sere import SereRouter
from sere.reroute.constants import LIMIT_ROWS

SENTINEL = -1
# The version whose way from the router to the sum over a row's slots was read.
_READ = (0, 32)
# Each expert's rows fill whole blocks. DeepGEMM's have 128 rows on Hopper cards. Marlin takes the smallest of
# these of which an expert, in the mean over all, fills less than nine tenths, or else the largest.
_BLOCKS: Mapping[str, Sequence[int]] = {"DeepGemmExperts": (128,), "MarlinExperts": (8, 16, 32, 48, 64)}


def skip_freed_slots(
    layers: Mapping[int, RoutedLayer], rules: Rules, given: RerouteConfig, vllm_config: Any, rows: int
) -> None:
    """Let each layer skip freed slots in large steps, if its expert kernel can and blocks of rows fall away.

    It does nothing where the user chose ``merge``, or where a tier that requests may ask for has no τ.

    Args:
        layers: The layers by index, with SERE's routers; ``skips_from`` of each is set.
        rules: What makes rules from settings, the layers' kernels known.
        given: The engine's settings as they were given.
        vllm_config: vLLM's ``VllmConfig``.
        rows: Most rows of a step.
    """
    if rules.merge_given or rules.of(given).config.merge != "none":
        return
    choices = rules.limits(given, [layer.shape for layer in layers.values()]).values()
    # As in a step of several tiers: of each number the largest.
    largest = torch.stack(list(choices)).amax(0).tolist()
    for layer, (_, *most_active, least_gain) in zip(layers.values(), largest, strict=True):
        kernel, _ = versions.expert_kernel(layer.runner)
        if least_gain == 0 or not skips(kernel, layer.runner, vllm_config):
            continue
        E, K = layer.shape.num_experts, layer.shape.top_k
        found = first_rows(type(kernel).__name__, most_active, E, K)
        if found <= rows and isinstance(layer.router, SereRouter):
            layer.skips_from = found
            layer.router.prepared.skip_freed_slots(found, SENTINEL)


def skips_from(layers: Iterable[RoutedLayer], config: RerouteConfig) -> int:
    """Return from how many rows on some layer skips freed slots; ``MOST_INT`` if none ever does.

    Args:
        layers: The layers, after `skip_freed_slots`.
        config: The engine's settings, fitted to the kernels; their ``merge`` may skip slots in all steps.
    """
    if config.merge == "sentinel":
        return 0
    return min((layer.skips_from for layer in layers if layer.skips_from is not None), default=MOST_INT)


def skips(kernel: Any, runner: Any, vllm_config: Any) -> bool:
    """Whether an expert kernel leaves out single slots of id -1, and nothing before it reads them.

    Other kernels read or write out of bounds there, or sum up an output that nobody has written.

    Args:
        kernel: The expert kernel, or None where it cannot be told.
        runner: The layer's ``MoERunner``.
        vllm_config: vLLM's ``VllmConfig``.
    """
    config, parallel = getattr(runner, "moe_config", None), vllm_config.parallel_config
    # Rows that are sent to other ranks, copies of experts, adapters, and routes that come with the tokens.
    reads_ids = (
        getattr(config, "dp_size", 1) > 1,
        versions.is_sequence_parallel(runner),
        getattr(parallel, "enable_eplb", False),
        getattr(vllm_config, "lora_config", None) is not None,
        getattr(getattr(vllm_config, "aux_output_config", None), "enable_return_routed_experts", False),
    )
    if versions.parse_version(versions.engine_version()) != _READ or any(reads_ids):
        return False
    name = type(kernel).__name__
    # Without expert parallelism Marlin's layers have no expert map, and then its sum takes every slot.
    return name in SUPPORTS_SENTINEL or (name == "MarlinExperts" and getattr(config, "ep_size", 1) > 1)


def first_rows(kernel: str, most_active: Sequence[int], E: int, K: int) -> int:
    """Return from how many rows on, for all larger steps, an active expert has more rows than a block.

    Args:
        kernel: Class name of an expert kernel that skips slots.
        most_active: M for a step of 1, 2, ... ``LIMIT_ROWS`` rows. Where it is 0, all experts may be active.
        E: Number of experts.
        K: Slots per row.
    """
    blocks = _BLOCKS[kernel]
    # Then the experts have more rows than the largest block, even if all of them are active.
    found = blocks[-1] * E // K + 1
    while found > 1 and _has_more(found - 1, most_active, blocks, E, K):
        found -= 1
    return found


def _has_more(rows: int, most_active: Sequence[int], blocks: Sequence[int], E: int, K: int) -> bool:
    active = most_active[min(rows, LIMIT_ROWS) - 1] or E
    block = next((block for block in blocks if 10 * rows * K < 9 * block * E), blocks[-1])
    return rows * K > block * active
