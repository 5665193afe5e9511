"""vLLM's sleep mode: it saves and restores only what modules of the model hold."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sere.integrations.vllm.worker.layer import RoutedLayer

logger = logging.getLogger("vllm.sere")


def keep_through_sleep(layer: RoutedLayer, vllm_config: Any, shared: Mapping[str, Tensor]) -> None:
    """Make the tensors that a layer's steps read buffers of its module.

    Args:
        layer: The layer, prepared.
        vllm_config: vLLM's ``VllmConfig``.
        shared: By name, what all layers read.
    """
    # Up to 0.20 the runner is not a module; its owner is in the forward context under the layer's name.
    known = getattr(vllm_config.compilation_config, "static_forward_context", {})
    owner = layer.runner if isinstance(layer.runner, torch.nn.Module) else known.get(layer.name)
    if not isinstance(owner, torch.nn.Module):
        logger.warning("sere: %s has no module to keep its tensors; do not use sleep level 2", layer.name)
        return
    assert layer.router is not None
    for name, tensor in {**layer.router.tensors(), **shared}.items():
        owner.register_buffer(f"sere_{name}", tensor, persistent=False)
