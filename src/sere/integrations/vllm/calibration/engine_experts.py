"""One layer's expert kernel as a module that takes hidden states, ids and weights, as Transformers' do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sere.integrations.vllm.start import versions


class EngineExperts(nn.Module):
    """The expert kernel of one MoE layer of the engine, with ids and weights of the caller's choice.

    Quantization, biases, activations and the split over ranks are the engine's own; ranks' partial outputs
    are summed. With several ranks each must call it at the same time. It has no parameters of its own.

    Args:
        runner: vLLM's ``MoERunner``, loaded.
        most_rows: Most rows of a call.

    Attributes:
        kernel: Class name of the expert kernel, or None where it cannot be told.
        most_rows: Most rows of a call; the engine has made room for no more.
    """

    def __init__(self, runner: Any, most_rows: int) -> None:
        super().__init__()
        self._runner = (runner,)  # a tuple, so that it does not become a part of this module
        self.kernel = versions.kernel_name(versions.expert_kernel(runner)[0])
        self.most_rows = most_rows

    def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs, before the layer's own scaling factor.

        Args:
            hidden: ``[t, H]``, as the layer gets them. Not modified.
            ids: Logical expert ids, ``[t, K]``.
            weights: ``[t, K]``.

        Returns:
            ``[t, H]``, of the engine's dtype.
        """
        (runner,) = self._runner
        ids = ids.to(versions.ids_dtype(runner) or torch.int32).contiguous()
        # Some kernels write their output into their input.
        output: Tensor = versions.run_experts(runner, hidden.clone(), weights.float().contiguous(), ids)
        summed: Tensor = versions.sum_over_ranks(runner, output)
        return summed

    def extra_repr(self) -> str:
        """Name the kernel."""
        return str(self.kernel)
