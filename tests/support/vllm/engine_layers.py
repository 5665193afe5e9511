"""An MoE layer of vLLM in miniature, and a model runner that announces batches, for calibration."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sere.integrations.vllm.calibration.observed import ObservedLayers
from tests.support.patience import HANGS_S


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

    Args:
        routed_scaling_factor: What the layer multiplies its output by.
        experts: Those that this rank holds; the others add nothing to its part.
        ep_size: Ranks over which the experts are spread.

    Attributes:
        dtypes: Of the weights and ids of each call of the kernel.
    """

    def __init__(
        self, routed_scaling_factor: float = 1.0, *, experts: Sequence[int] = range(8), ep_size: int = 1
    ) -> None:
        self.layer_name, self.router = "model.layers.0.mlp.experts", _Router()
        self.routed_scaling_factor = routed_scaling_factor
        self.moe_config = SimpleNamespace(num_experts=8, tp_size=1, ep_size=ep_size, dp_size=1)
        self._experts, self._fused_output_is_reduced = torch.tensor(list(experts)), False
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
        weights = topk_weights * torch.isin(topk_ids, self._experts)
        return x.mul_(((topk_ids + 1) * weights).sum(dim=1, keepdim=True))


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


class Ranks:
    """Ranks as threads: what vLLM calls an all-reduce sums what each of them brings.

    Attributes:
        sums: How many times all of them met.
    """

    def __init__(self, count: int) -> None:
        self.sums = 0
        self._count, self._parts = count, dict[int, Tensor]()
        self._meeting = threading.Barrier(count, timeout=HANGS_S)

    def all_reduce(self, output: Tensor) -> Tensor:
        """Return the sum of all ranks' tensors."""
        self._parts[threading.get_ident()] = output
        if self._meeting.wait() == 0:
            self.sums += 1
        total = torch.stack(list(self._parts.values())).sum(dim=0)
        self._meeting.wait()
        return total

    def run(self, call: Callable[[int], Tensor]) -> list[Tensor]:
        """Call a function with each rank's number, at the same time; return what each gave."""
        with ThreadPoolExecutor(self._count) as pool:
            return list(pool.map(call, range(self._count)))


def batches(runner: Any, names: Sequence[str], counts: Sequence[int]) -> None:
    """Let a model runner prepare a step with these requests and rows."""
    runner.prepare_inputs(
        SimpleNamespace(req_ids=list(names), num_scheduled_tokens=np.array(counts), num_tokens=sum(counts))
    )
