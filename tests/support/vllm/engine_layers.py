"""An MoE layer of vLLM in miniature, and a model runner that announces batches, for calibration."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sere.integrations.vllm.calibration.observed import ObservedLayers


class _Router:
    def __init__(self) -> None:
        self.top_k = 2

    def _compute_routing(self, hidden: Tensor, _: Tensor, __: Any = None) -> tuple[Tensor, Tensor]:
        """Choose the row's number and the next expert; vLLM returns weights first."""
        first = torch.arange(len(hidden))[:, None]
        return torch.tensor([0.75, 0.25]).expand(len(hidden), 2), torch.cat([first, first + 1], 1).int()


class Kernel:
    """An expert kernel, whose name error texts show."""


class Layer:
    """A ``MoERunner`` with eight experts: expert e multiplies its input, which it overwrites, by e + 1.

    Attributes:
        dtypes: Of the weights and ids of each call of the kernel.
    """

    def __init__(self, routed_scaling_factor: float = 1.0) -> None:
        self.layer_name, self.router = "model.layers.0.mlp.experts", _Router()
        self.routed_scaling_factor = routed_scaling_factor
        self.moe_config = SimpleNamespace(num_experts=8, tp_size=1, ep_size=1, dp_size=1)
        self.dtypes: list[tuple[torch.dtype, torch.dtype]] = []
        method = SimpleNamespace(
            is_monolithic=False, moe_kernel=SimpleNamespace(fused_experts=Kernel()), topk_indices_dtype=None
        )
        self.routed_experts = SimpleNamespace(
            quant_method=method, forward_modular=self._run, _ensure_moe_quant_config_init=lambda: None
        )

    def step(self, rows: int) -> None:
        """Run the router on a step whose row r has hidden states ``[r, 0]``."""
        hidden = torch.stack([torch.arange(float(rows)), torch.zeros(rows)], dim=1)
        self.router._compute_routing(hidden, torch.zeros(rows, 8))

    def _run(self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        self.dtypes.append((topk_weights.dtype, topk_ids.dtype))
        return x.mul_(((topk_ids + 1) * topk_weights).sum(dim=1, keepdim=True))


def observed_layers(*layers: Layer) -> tuple[ObservedLayers, Any]:
    """Return what calibration sees of an engine with these layers, and its model runner (V2)."""
    observed = ObservedLayers(
        SimpleNamespace(
            parallel_config=SimpleNamespace(rank=0, tensor_parallel_size=1, pipeline_parallel_size=1),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=64),
        )
    )
    for layer in layers:
        observed.add(layer)
    runner = SimpleNamespace(prepare_inputs=lambda batch: batch)
    observed.prepare(runner)
    return observed, runner


def batches(runner: Any, names: Sequence[str], counts: Sequence[int]) -> None:
    """Let a model runner prepare a step with these requests and rows."""
    runner.prepare_inputs(
        SimpleNamespace(req_ids=list(names), num_scheduled_tokens=np.array(counts), num_tokens=sum(counts))
    )
