"""One MoE layer of an engine, as the hook behind its router sees it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sere.errors import SereError
from sere.integrations.vllm.start import versions
from sere.integrations.vllm.tiers import PADDING
from sere.integrations.vllm.worker.router_hook import layer_index
from sere.integrations.vllm.worker.row_budgets import RowBudgets
from sere.policies.base import LayerShape
from sere.reroute import PreparedLayer, Routing, TokenBatch

_ID_DTYPES = (torch.int32, torch.int64)


class RoutedLayer:
    """One MoE layer of the engine.

    Attributes:
        index: Decoder-layer index.
        name: vLLM's name of the layer.
        runner: Its ``MoERunner``.
        num_experts: Routed experts, without EPLB's copies.
        top_k: Routed slots per token.
        prepared: The prepared similarities and settings; None until the model is loaded.
        counters: int64, one entry per name in ``sere.reroute.COUNTERS``, on the device.
        budgets: The budgets of the coming step's rows; None until the model is loaded.
    """

    def __init__(self, runner: Any) -> None:
        self.runner, self.name = runner, str(runner.layer_name)
        self.index = layer_index(self.name)
        self.num_experts, self.top_k = versions.logical_experts(runner), int(runner.router.top_k)
        self.prepared: PreparedLayer | None = None
        self.counters: Tensor | None = None
        self.budgets: RowBudgets | None = None

    @property
    def shape(self) -> LayerShape:
        """The layer as routing rules see it."""
        return LayerShape(self.index, self.num_experts, self.top_k)

    def route(self, ids: Tensor, weights: Tensor) -> Routing:
        """Re-route one step; called where the router returns.

        Args:
            ids: Logical expert ids, ``[T, K]``, any integer dtype. Not modified.
            weights: Gate weights, ``[T, K]``. Not modified.

        Returns:
            New ids and weights; same shapes, dtypes and device.

        Raises:
            SereError: The engine runs the layer before its model was loaded.
        """
        prepared, budgets = self.prepared, self.budgets
        if prepared is None or budgets is None:
            raise SereError(f"{self.name}: runs before re-routing was prepared; please report this")
        if budgets.skip:
            return Routing(ids, weights)
        # Some kernels ask for uint32 or int16 ids.
        narrow = ids if ids.dtype in _ID_DTYPES else ids.to(torch.int32)
        routing = prepared.route(TokenBatch(narrow, weights, budgets.at(ids.shape[0])), self.counters)
        return routing if narrow is ids else Routing(routing.ids.to(ids.dtype), routing.weights)

    def warm_up(self) -> None:
        """Run the operation once on padding, so that a backend compiles now and not in a request."""
        assert self.prepared is not None
        assert self.counters is not None
        ids = torch.zeros(1, self.top_k, dtype=torch.int32, device=self.counters.device)
        padding = torch.full((1,), PADDING, dtype=torch.int32, device=ids.device)
        batch = TokenBatch(ids, torch.zeros_like(ids, dtype=torch.float32), padding)
        self.prepared.route(batch, self.counters)
