"""One MoE layer of an engine, as the hook behind its router sees it."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from sere.errors import SereError, UnsupportedEngine
from sere.integrations.vllm.start import versions
from sere.integrations.vllm.worker.flat_experts import FlatExperts
from sere.integrations.vllm.worker.router_scores import check_scores
from sere.integrations.vllm.worker.row_budgets import RowBudgets
from sere.policies.base import LayerRouter, LayerShape, Policy
from sere.reroute import Routing, TokenBatch
from sere.reroute.checks import ID_DTYPES
from sere.reroute.constants import PADDING_BUDGET


class RoutedLayer:
    """One MoE layer of the engine.

    Attributes:
        name: vLLM's name of the layer.
        runner: Its ``MoERunner``.
        shape: Its index, routed experts (without EPLB's copies) and routed slots per token.
        router: The rule, bound to this layer; None until the model is loaded.
        needs_scores: Whether ``router`` is given the scores of all experts.
        budgets: The budgets of the coming step's rows; None until the model is loaded.
        flat: Hands the expert kernel only what carries weight; None where it is left alone.
    """

    def __init__(self, runner: Any) -> None:
        self.runner, self.name = runner, str(runner.layer_name)
        self.shape = LayerShape(
            layer_index(self.name), versions.logical_experts(runner), int(runner.router.top_k)
        )
        self.router: LayerRouter | None = None
        self.needs_scores = False
        self.budgets: RowBudgets | None = None
        self.flat: FlatExperts | None = None

    def bind(self, policy: Policy, device: torch.device) -> None:
        """Let a policy route this layer from the next step on.

        Args:
            policy: The rule.
            device: Where the layer runs.

        Raises:
            UnsupportedEngine: It needs scores that this layer's router does not have.
            SereError: It cannot be bound to this layer.
        """
        if policy.needs_scores:
            check_scores(policy.name, self.name, self.runner.router)
        self.router, self.needs_scores = policy.bind(self.shape, device), policy.needs_scores
        if self.flat is not None:
            self.flat.enabled = policy.changes_routing

    def return_to(self, router: LayerRouter) -> None:
        """Let the engine's own rule route this layer again.

        Args:
            router: What routed it before `bind`.
        """
        self.router, self.needs_scores = router, False
        if self.flat is not None:
            self.flat.enabled = True

    def route(self, ids: Tensor, weights: Tensor, logits: Tensor) -> Routing:
        """Route one step; called where vLLM's router returns.

        Args:
            ids: Logical expert ids, ``[T, K]``, any integer dtype. Not modified.
            weights: Gate weights, ``[T, K]``. Not modified.
            logits: What vLLM's router chose by, ``[T, E]`` or wider (zero experts).

        Returns:
            New ids and weights; same shapes, dtypes and device.

        Raises:
            SereError: The engine runs the layer before its model was loaded.
        """
        router, budgets = self.router, self.budgets
        if router is None or budgets is None:
            raise SereError(f"{self.name}: its router ran before re-routing was prepared; please report this")
        if budgets.skip:
            return Routing(ids, weights)
        scores = logits[:, : self.shape.num_experts] if self.needs_scores else None
        # Some kernels ask for uint32 or int16 ids.
        narrow = ids if ids.dtype in ID_DTYPES else ids.to(torch.int32)
        routing = router(TokenBatch(narrow, weights, budgets.at(ids.shape[0]), None, scores))
        return routing if narrow is ids else Routing(routing.ids.to(ids.dtype), routing.weights)

    def warm_up(self) -> None:
        """Run the router once on padding, so that a backend compiles now and not in a request."""
        assert self.router is not None
        ids = torch.zeros(1, self.shape.top_k, dtype=torch.int32, device=self.router.counters.device)
        padding = torch.full((1,), PADDING_BUDGET, dtype=torch.int32, device=ids.device)
        self.router(TokenBatch(ids, torch.zeros_like(ids, dtype=torch.float32), padding))


def layer_index(name: str) -> int:
    """Return the decoder layer's index in a layer's name, such as 3 in ``model.layers.3.mlp.experts``.

    Raises:
        UnsupportedEngine: There is none.
    """
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    if match is None:
        raise UnsupportedEngine(f"{name}: expected a decoder-layer index in the layer's name, found none")
    return int(match[1])
