"""Run tests under a vLLM whose CPU expert kernels route inside themselves: 0.20 to 0.29.

    python -m pytest -p tests.support.vllm.decomposed tests/integrations/vllm/in_engine/test_rows.py

The engine takes the way that it takes on a GPU, router and then Triton's expert kernel. Only what is compiled
for a GPU is replaced by tensor operations: the router's choice and the kernel's arithmetic.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sere.integrations.vllm.start import versions


def choose(
    scores: Any, weights: Tensor, ids: Tensor, _: Tensor, logits: Tensor, renormalize: bool = False,
    bias: Tensor | None = None, **__: Any,
) -> None:  # fmt: skip
    """Stand in for the router's operations: write each row's experts and weights in place."""
    found = scores(logits.float())
    ids.copy_((found if bias is None else found + bias).topk(ids.shape[1]).indices)
    taken = found.gather(1, ids.long())
    weights.copy_(taken / taken.sum(dim=1, keepdim=True) if renormalize else taken)


def apply(
    _: Any, output: Tensor, hidden_states: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor,
    topk_ids: Tensor, activation: Any, *__: Any, **___: Any,
) -> None:  # fmt: skip
    """Stand in for ``TritonExperts.apply``: write the weighted sum of each row's experts in place."""
    assert activation.value == "silu"
    gate, up = torch.einsum("th,eih->tei", hidden_states.float(), w1.float()).chunk(2, dim=-1)
    outputs = torch.einsum("tei,ehi->teh", torch.nn.functional.silu(gate) * up, w2.float())
    share = torch.zeros(outputs.shape[:2]).scatter_add(1, topk_ids.long(), topk_weights.float())
    output.copy_(torch.einsum("te,teh->th", share, outputs))


@pytest.fixture(scope="session", autouse=True)
def _kernel_of_a_gpu() -> None:
    """Let vLLM take its Triton kernel on a CPU."""
    from vllm import _custom_ops
    from vllm.model_executor.layers.fused_moe import modular_kernel, unquantized_fused_moe_method
    from vllm.model_executor.layers.fused_moe.oracle import unquantized
    from vllm.model_executor.layers.fused_moe.runner import moe_runner
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.worker.workspace import WorkspaceManager

    backend = unquantized.UnquantizedMoeBackend.TRITON
    classes = unquantized.backend_to_kernel_cls(backend)
    kernel = classes[0] if isinstance(classes, list) else classes
    kernel.apply = apply
    unquantized_fused_moe_method.select_unquantized_moe_backend = lambda *_, **__: (backend, kernel)
    _custom_ops.topk_softmax = partial(choose, partial(torch.softmax, dim=-1))
    _custom_ops.topk_sigmoid = partial(choose, torch.sigmoid)
    # Asked for at the end of an engine, whose device this torch may not have.
    torch.accelerator.synchronize = torch.accelerator.empty_cache = lambda *_: None
    # A GPU's worker makes one, a CPU's does not.
    manager = WorkspaceManager(torch.device("cpu"))
    modular_kernel.current_workspace_manager = lambda: manager
    # As on a GPU, a layer is one operation that compiled code does not look into.
    gpu = type("Platform", (CpuPlatform,), {"is_cpu": lambda _: False})
    moe_runner.current_platform = gpu()
    # Nothing routes inside itself now.
    versions.FIRST_ON_CPU = versions.READ[0]
    configure = CpuPlatform.check_and_update_config

    def stay_here(config: Any) -> None:
        """Keep the worker in this process, as later releases do where they are asked to."""
        configure(config)
        config.parallel_config.distributed_executor_backend = "uni"

    CpuPlatform.check_and_update_config = staticmethod(stay_here)
