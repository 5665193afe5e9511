"""A layer and its settings, prepared: what every step of an engine calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.errors import ConfigError, InputError
from sere.reroute import operator
from sere.reroute.backends.registry import Run, implementation, on_device, select
from sere.reroute.batch import Routing
from sere.reroute.checks import check_batch
from sere.reroute.types import MERGE_MODES, Neighbors, Rules, prepare_neighbors
from sere.similarity.layer import LayerSimilarity, check_scale


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything about one layer that does not change from step to step.

    Attributes:
        neighbors: The layer's similarities, sorted and cut at ρ, on one device.
        rules: The settings as plain numbers.
        backend: The name of the implementation.
        run: The implementation.
    """

    neighbors: Neighbors
    rules: Rules
    backend: str
    run: Run

    def route(
        self,
        topk_ids: Tensor,
        topk_weights: Tensor,
        *,
        row_budget: Tensor | Sequence[int] | None = None,
        num_tokens: Tensor | int | None = None,
        counters: Tensor | None = None,
    ) -> Routing:
        """Re-route one step; see ``sere.reroute`` for the arguments."""
        budget = check_batch(topk_ids, topk_weights, row_budget, num_tokens, counters)
        # A tensor's device always has its index, so this compares like with like.
        if self.neighbors.order.device != topk_ids.device:
            raise InputError(
                f"expected ids on {self.neighbors.order.device}, where the plan was made, got "
                f"{topk_ids.device}; make a plan for each device"
            )
        compiling = torch.compiler.is_compiling()
        if compiling and self.backend != "torch":
            ids, weights = operator.call(
                topk_ids,
                topk_weights,
                self.neighbors,
                self.rules,
                budget,
                num_tokens,
                counters,
                self.backend,
            )
        else:
            ids, weights = self.run(
                topk_ids, topk_weights, self.neighbors, self.rules, budget, num_tokens, counters
            )
        return Routing(ids, weights)


def make_plan(
    layer: LayerSimilarity,
    config: RerouteConfig,
    *,
    keep: Sequence[int] = (),
    scale: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Plan:
    """Prepare a layer: sort the neighbors, cut them at ρ, choose the backend.

    Args:
        layer: The layer's similarities.
        config: The settings; ``config.keep`` is not read here, it is for all layers.
        keep: Experts of this layer that are never replaced.
        scale: ``[E, E]``, float32, finite: factors for the weights of re-routed slots, or None. Copied.
        device: Where the steps will run.

    Raises:
        InputError: ``keep`` or ``scale`` does not fit the layer.
        ConfigError: ``config.sentinel`` is the id of one of the layer's experts.
        BackendUnavailable: The named backend cannot run on the device.
    """
    if scale is not None:
        # Compiled backends read it through a raw pointer: a wrong shape would read foreign memory.
        check_scale(scale, layer.num_experts)
    if config.sentinel is not None and 0 <= config.sentinel < layer.num_experts:
        raise ConfigError(
            f"sentinel: expected the id of no expert, such as -1 or {layer.num_experts}, got {config.sentinel}, one of "
            f"the layer's {layer.num_experts} experts, which would run for every freed slot"
        )
    device = torch.device(device)
    backend = select(config.backend, device.type, layer.num_experts)
    neighbors = prepare_neighbors(layer, threshold=config.threshold, keep=keep, scale=scale, device=device)
    rules = Rules(
        select_top_k=config.select_top_k,
        min_active=config.min_active,
        active_targets=config.targets == "active",
        merge=MERGE_MODES.index(config.merge),
        sentinel=0 if config.sentinel is None else config.sentinel,
    )
    backend = on_device(backend, config.backend, neighbors.order.device)
    return Plan(neighbors, rules, backend, implementation(backend))
