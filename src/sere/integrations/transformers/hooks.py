"""The hooks: one before the model, one before each experts module, one after each router if needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sere.errors import UnsupportedModel
from sere.integrations.transformers.routers import find_router, scores_in
from sere.integrations.transformers.step import Step, forward_names
from sere.policies.base import Policy
from sere.reroute import COUNTERS
from sere.structure import ExpertsLayer

ExpertsHook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]


class HookedLayer:
    """One layer as its hook sees it.

    Attributes:
        index: Decoder-layer index.
        name: Module name of the experts.
        E: Experts of the layer.
        counters: int64, one entry per name in ``sere.reroute.COUNTERS``, on the layer's device.
        scores: ``[T, E]``, what the router said of all experts in this step, or None.
    """

    def __init__(self, layer: ExpertsLayer, device: torch.device) -> None:
        self.index, self.name, self.E = layer.index, layer.name, layer.E
        self.counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)
        self.scores: Tensor | None = None


def hook_model(model: nn.Module, step: Step, layers: list[HookedLayer]) -> list[RemovableHandle]:
    """Set the hooks that begin and end a step."""
    names = forward_names(model)

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step.begin(dict(zip(names, args, strict=False)) | kwargs if args else kwargs)

    def end(*_: object) -> None:
        step.clear()
        for layer in layers:
            layer.scores = None

    return [
        model.register_forward_pre_hook(begin, with_kwargs=True),
        # Also when the call fails: a later call of an inner module must not find an old step.
        model.register_forward_hook(end, always_call=True),
    ]


def hook_experts(module: nn.Module, layer: HookedLayer, step: Step, policy: Policy) -> RemovableHandle:
    """Set the hook that changes ids and weights on their way into an experts module."""
    index, name, route = layer.index, layer.name, policy.route

    def reroute(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not step.active:
            return None
        if len(args) != 3:
            raise UnsupportedModel(
                f"{name}: expected a call with hidden states, ids and weights by position, "
                f"got {len(args)} positional arguments"
            )
        hidden, ids, weights = args
        if layer.counters.device != ids.device:
            layer.counters = layer.counters.to(ids.device)
        row_budget, num_tokens = step.at(ids.device, ids.shape[0], name)
        routing = route(
            index,
            ids,
            weights,
            row_budget=row_budget,
            num_tokens=num_tokens,
            scores=layer.scores,
            counters=layer.counters,
        )
        return hidden, routing.ids, routing.weights

    # The mark that sere.structure.is_rerouted looks for.
    reroute.sere_layer = index  # type: ignore[attr-defined]
    return module.register_forward_pre_hook(reroute)


def hook_router(model: nn.Module, layer: HookedLayer, step: Step) -> RemovableHandle:
    """Set the hook that keeps a router's scores for the policy.

    Raises:
        UnsupportedModel: No router stands beside the experts.
    """
    router = find_router(model, layer.name, layer.E)

    def keep_scores(_: nn.Module, __: object, output: object) -> None:
        if step.active:
            layer.scores = scores_in(output, layer.E, layer.name)

    return router.register_forward_hook(keep_scores)
