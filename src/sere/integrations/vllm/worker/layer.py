"""One MoE layer of an engine, as the hook behind its router sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sere.errors import SereError, UnsupportedEngine
from sere.flatten import PairCounts
from sere.integrations.vllm.start import features, versions
from sere.integrations.vllm.worker import route_operator
from sere.integrations.vllm.worker.flat_experts import FlatExperts
from sere.integrations.vllm.worker.router_scores import check_scores
from sere.integrations.vllm.worker.row_budgets import RowBudgets
from sere.policies.base import LayerRouter, LayerShape, Policy
from sere.reroute import Routing, StepDtypes, TokenBatch
from sere.reroute.checks import ID_DTYPES
from sere.reroute.constants import PADDING_BUDGET
from sere.reroute.expert_counts import new_counts, route_counted


class RoutedLayer:
    """One MoE layer of the engine.

    Attributes:
        name: vLLM's name of the layer.
        runner: Its ``MoERunner``.
        shape: Its index, routed experts (without EPLB's copies), routed slots per token, and, once the model
            is loaded, the dtypes of its steps.
        router: The rule, bound to this layer; None until the model is loaded.
        needs_scores: Whether ``router`` is given the scores of all experts.
        budgets: The budgets of the coming step's rows; None until the model is loaded.
        share: Which share of a step's rows this rank computes, with sequence parallelism; else 0.
        counters: Where every router of this layer counts; None until the model is loaded.
        experts: ``[2, E]``, int64: how often each expert was chosen and ran, or None if that is not counted.
        flat: Hands the expert kernel only what carries weight; None where it is left alone.
        pairs: What it counted.
        skips_from: From how many rows on its freed slots get an id that the expert kernel skips; or None.
    """

    def __init__(self, runner: Any) -> None:
        self.runner, self.name = runner, str(runner.layer_name)
        setattr(runner, route_operator.ATTRIBUTE, self)
        self.shape = LayerShape(
            layer_index(self.name), versions.logical_experts(runner), int(runner.router.top_k)
        )
        self.router: LayerRouter | None = None
        self.needs_scores = False
        self.budgets: RowBudgets | None = None
        self.share = 0
        self.counters: Tensor | None = None
        self.experts: Tensor | None = None
        self.flat: FlatExperts | None = None
        self.pairs = PairCounts()
        self.skips_from: int | None = None

    @property
    def expert_bytes(self) -> int | None:
        """Bytes of one routed expert's weights in this worker, or None if they cannot be told."""
        return versions.expert_bytes(self.runner, self.shape.num_experts)

    def describe(self) -> dict[str, Any]:
        """Return which layer this is and what it computed as pairs, as plain numbers."""
        return {
            "index": self.shape.index,
            "name": self.name,
            "share": self.share,
            "pairs": self.pairs.to_list(),
        }

    def find_share(self, rank: int, *, allow_untested: bool) -> None:
        """Find out which rows of a step the layer is given, once its model is loaded.

        Args:
            rank: Tensor-parallel rank.
            allow_untested: Let pass what cannot be told.

        Raises:
            UnsupportedEngine: Those of all data-parallel ranks, or it cannot be told.
        """
        gathers = versions.gathers_rows(self.runner)
        features.refuse_gathering(self.name, gathers, allow_untested=allow_untested)
        self.share = rank if versions.is_sequence_parallel(self.runner) else 0

    def prepare(self, budgets: RowBudgets, counters: Tensor, *, count_experts: bool) -> None:
        """Take in what the steps of this layer read and write.

        Args:
            budgets: The budgets of the coming step's rows.
            counters: Where the layer counts, one entry per name in ``COUNTERS``.
            count_experts: Whether the uses of each expert are counted, too.
        """
        self.budgets, self.counters = budgets, counters
        # vLLM's weights are float32; ids are int32, or what the expert kernel wants, as some routers give it.
        wide = versions.ids_dtype(self.runner) is torch.int64
        ids = (torch.int32, torch.int64) if wide else (torch.int32,)
        dtypes = tuple(StepDtypes(one, torch.float32) for one in ids)
        self.shape = replace(self.shape, dtypes=dtypes)
        self.experts = new_counts(self.shape.num_experts, counters.device) if count_experts else None

    def reset(self) -> None:
        """Set what this layer counted besides ``counters``, which it shares with the others, to zero."""
        self.pairs.reset()
        if self.experts is not None:
            self.experts.zero_()

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
        self.take(policy.bind(self.shape, device), needs_scores=policy.needs_scores)
        if self.flat is not None:
            self.flat.enabled = policy.changes_routing

    def take(self, router: LayerRouter, *, needs_scores: bool = False) -> None:
        """Let a router route this layer from the next step on."""
        if self.counters is not None:
            router.counters = self.counters
        self.router, self.needs_scores = router, needs_scores
        if self.flat is not None:
            self.flat.enabled = True

    def route(self, ids: Tensor, weights: Tensor, logits: Tensor | None) -> Routing:
        """Route one step; called where vLLM's router returns.

        Args:
            ids: Logical expert ids, ``[T, K]``, any integer dtype. Not modified.
            weights: Gate weights, ``[T, K]``. Not modified.
            logits: What vLLM's router chose by, ``[T, E]`` or wider (zero experts); None in compiled code on
                a CPU, where no rule runs that needs scores.

        Returns:
            New ids and weights; same shapes, dtypes and device.

        Raises:
            SereError: The engine runs the layer before its model was loaded.
        """
        router, budgets = self.router, self.budgets
        if router is None or budgets is None:
            raise SereError(f"{self.name}: its router ran before re-routing was prepared; please report this")
        if not _recorded(ids):
            if budgets.skip:
                return Routing(ids, weights)
        elif ids.is_cpu and not self.needs_scores:
            return route_operator.traced(ids, weights, self.name, budgets.skips)
        scores = None
        if self.needs_scores:
            assert logits is not None
            scores = logits[:, : self.shape.num_experts]
        # Some kernels ask for uint32 or int16 ids.
        narrow = ids if ids.dtype in ID_DTYPES else ids.to(torch.int32)
        rows, real = budgets.at(ids.shape[0], self.share), budgets.real_of(self.share)
        batch = TokenBatch(narrow, weights, rows, real, scores)
        if self.experts is None:
            routing = router(batch)
        else:
            routing = route_counted(router, batch, router.counters, self.experts)
        return routing if narrow is ids else Routing(routing.ids.to(ids.dtype), routing.weights)

    def warm_up(self) -> None:
        """Run the router on padding, so that a backend compiles now and not in a request.

        Once per dtype, and as often for large steps if freed slots are skipped there.
        """
        assert self.router is not None
        device = self.router.counters.device
        for dtypes, rows in product(self.shape.dtypes, filter(None, (1, self.skips_from))):
            ids = torch.zeros(rows, self.shape.top_k, dtype=dtypes.ids, device=device)
            padding = torch.full((rows,), PADDING_BUDGET, dtype=torch.int32, device=device)
            self.router(TokenBatch(ids, torch.zeros_like(ids, dtype=dtypes.weights), padding))


def _recorded(ids: Tensor) -> bool:
    """Whether this run is compiled or captured, to be repeated in other steps without its Python."""
    return torch.compiler.is_compiling() or (ids.is_cuda and torch.cuda.is_current_stream_capturing())


def warm_up(layers: Iterable[RoutedLayer]) -> None:
    """Run the router of one layer of each shape, because a backend may compile for a shape."""
    for layer in {_kind(layer): layer for layer in layers}.values():
        layer.warm_up()


def _kind(layer: RoutedLayer) -> tuple[int, int, bool]:
    return layer.shape.num_experts, layer.shape.top_k, layer.skips_from is None


def layer_index(name: str) -> int:
    """Return the decoder layer's index in a layer's name, such as 3 in ``model.layers.3.mlp.experts``.

    Raises:
        UnsupportedEngine: There is none.
    """
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    if match is None:
        raise UnsupportedEngine(f"{name}: expected a decoder-layer index in the layer's name, found none")
    return int(match[1])
