"""The hooks: around the modules that take tokens, before each experts module, after each router if needed.

They are objects, not functions, because a copy of a model copies its hooks: a copy of one of these does
nothing, so that no copy is re-routed by the handle of another model.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sere.errors import UnsupportedModel
from sere.integrations.transformers.call import Step
from sere.integrations.transformers.inputs import forward_names, named
from sere.integrations.transformers.routers import find_router, scores_in
from sere.policies.base import Policy
from sere.reroute import COUNTERS
from sere.structure import ExpertsLayer

logger = logging.getLogger("sere")


class HookedLayer:
    """One layer as its hook sees it.

    Attributes:
        index: Decoder-layer index.
        name: Module name of the experts.
        num_experts: Experts of the layer.
        counters: int64, one entry per name in ``sere.reroute.COUNTERS``, on the layer's device.
        scores: ``[T, E]``, what the router said of all experts in this step, or None.
    """

    def __init__(self, layer: ExpertsLayer, device: torch.device) -> None:
        self.index, self.name, self.num_experts = layer.index, layer.name, layer.num_experts
        # In inference mode it would be a tensor that can be changed in that mode only.
        with torch.inference_mode(False):
            self.counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)
        self.scores: Tensor | None = None

    def move(self, device: torch.device) -> None:
        """Take the counters to where the layer is now."""
        with torch.inference_mode(False):
            self.counters = self.counters.to(device)


def hook_calls(modules: list[nn.Module], step: Step, layers: list[HookedLayer]) -> list[RemovableHandle]:
    """Set the hooks that begin and end a step.

    Args:
        modules: The modules around all layers that are called with tokens, the outermost first.
        step: The state to write.
        layers: Whose scores are forgotten after a call.
    """
    handles = []
    step.modules = modules
    for module in modules:
        begin = _Begin(step, forward_names(type(module)), innermost=module is modules[-1])
        handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
        # Also when the call fails: a later call of an inner module must not find an old step.
        handles.append(module.register_forward_hook(_End(step, layers), always_call=True))
    return handles


def hook_experts(module: nn.Module, layer: HookedLayer, step: Step, policy: Policy) -> RemovableHandle:
    """Set the hook that changes ids and weights on their way into an experts module."""
    return module.register_forward_pre_hook(_Reroute(layer, step, policy))


def hook_router(model: nn.Module, layer: HookedLayer, step: Step) -> RemovableHandle:
    """Set the hook that keeps a router's scores for the policy.

    Raises:
        UnsupportedModel: No router stands beside the experts.
    """
    return find_router(model, layer.name, layer.num_experts).register_forward_hook(_KeepScores(layer, step))


def inert(*_: object) -> None:
    """Do nothing: what the hooks of a copied or saved model become."""


def _nothing() -> object:
    return inert


class _Hook:
    """A hook that stays with the model it was set on."""

    says = False

    def __deepcopy__(self, memo: dict[int, Any]) -> object:
        self._say("copied")
        return inert

    def __reduce__(self) -> tuple[Any, ...]:
        self._say("saved")
        # A saved model then holds nothing of the handle.
        return _nothing, ()

    def _say(self, what: str) -> None:
        if self.says:
            logger.warning(
                "sere: a model was %s while re-routing was on; the copy is not re-routed, call sere.apply on "
                "it if it should be",
                what,
            )


class _Begin(_Hook):
    def __init__(self, step: Step, names: tuple[str, ...], *, innermost: bool) -> None:
        self.step, self.names, self.innermost = step, names, innermost
        # One line per model, not one per hook.
        self.says = innermost

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.step.enter(named(self.names, args, kwargs), module, innermost=self.innermost)


class _End(_Hook):
    def __init__(self, step: Step, layers: list[HookedLayer]) -> None:
        self.step, self.layers = step, layers

    def __call__(self, *_: object) -> None:
        self.step.leave()
        for layer in self.layers:
            layer.scores = None


class _Reroute(_Hook):
    def __init__(self, layer: HookedLayer, step: Step, policy: Policy) -> None:
        self.layer, self.step, self.policy = layer, step, policy
        # The mark that sere.structure.is_rerouted looks for.
        self.sere_layer = layer.index

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        layer, step = self.layer, self.step
        if not step.active:
            return None
        if len(args) != 3:
            raise UnsupportedModel(
                f"{layer.name}: expected a call with hidden states, ids and weights by position, "
                f"got {len(args)} positional arguments"
            )
        hidden, ids, weights = args
        if layer.counters.device != ids.device:
            layer.move(ids.device)
        step.guard.hook_ran = True
        row_budgets, num_tokens = step.at(ids.device, ids.shape[0], layer.name)
        routing = self.policy.route(
            layer.index,
            ids,
            weights,
            row_budgets=row_budgets,
            num_tokens=num_tokens,
            scores=layer.scores,
            counters=layer.counters,
        )
        return hidden, routing.ids, routing.weights


class _KeepScores(_Hook):
    def __init__(self, layer: HookedLayer, step: Step) -> None:
        self.layer, self.step = layer, step

    def __call__(self, _: nn.Module, __: object, output: object) -> None:
        if self.step.active:
            self.layer.scores = scores_in(output, self.layer.num_experts, self.layer.name)
