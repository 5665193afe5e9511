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
from sere.integrations.transformers.call import CurrentCall
from sere.integrations.transformers.flat_experts import FlatExperts
from sere.integrations.transformers.inputs import forward_names, named
from sere.integrations.transformers.routers import find_router, scores_in
from sere.policies.base import LayerRouter, LayerShape, Policy
from sere.reroute import Routing, StepDtypes, TokenBatch
from sere.reroute.batch import USUAL_DTYPES
from sere.reroute.checks import WEIGHT_DTYPES
from sere.reroute.expert_counts import new_counts, route_counted
from sere.structure import ExpertsLayer

logger = logging.getLogger("sere")


class HookedLayer:
    """One layer as its hook sees it.

    Args:
        layer: The experts module that is found in the model.
        policy: The rule.
        device: Where the layer is.
        flatten: The setting ``flatten``.
        count_experts: Whether the uses of each expert are counted.
        dtypes: What the layer's router may give, from `step_dtypes`.

    Attributes:
        name: Module name of the experts.
        policy: The rule.
        shape: The layer's index, sizes and dtypes.
        router: The rule, bound to the layer and its device.
        scores: ``[T, E]``, the router's scores of all experts in this step, or None.
        experts: ``[2, E]``, int64: how often each expert was chosen and ran, or None if that is not counted.
        flat: Hands the experts module only what carries weight.
    """

    def __init__(
        self,
        layer: ExpertsLayer,
        policy: Policy,
        device: torch.device,
        flatten: str = "auto",
        *,
        count_experts: bool = False,
        dtypes: tuple[StepDtypes, ...] = USUAL_DTYPES,
    ) -> None:
        self.name, self.policy = layer.name, policy
        self.shape = LayerShape(layer.index, layer.num_experts, layer.top_k, dtypes)
        # Here and not in the first step, which a compiler may be tracing.
        self.router = self._bind(device)
        self.scores: Tensor | None = None
        self.experts = _static(new_counts(layer.num_experts, device)) if count_experts else None
        allowed = flatten if policy.changes_routing else "off"
        self.flat = FlatExperts(layer.module, layer.num_experts, layer.top_k, allowed)

    @property
    def index(self) -> int:
        """Decoder-layer index."""
        return self.shape.index

    @property
    def counters(self) -> Tensor:
        """The router's counters."""
        return self.router.counters

    def route(self, batch: TokenBatch) -> Routing:
        """Route one step on the device where the layer is now."""
        if self.router.counters.device != batch.topk_ids.device:
            self._move(batch.topk_ids.device)
        if self.experts is None:
            return self.router(batch)
        return route_counted(self.router, batch, self.counters, self.experts)

    def _bind(self, device: torch.device) -> LayerRouter:
        """Bind the rule, and tell the compiler that what it reads and writes stays where it is."""
        router = self.policy.bind(self.shape, device)
        for tensor in router.tensors().values():
            _static(tensor)
        return router

    def _move(self, device: torch.device) -> None:
        """Bind the rule once more, where the layer is now; the counts go on."""
        router = self._bind(device)
        router.counters.copy_(self.router.counters)
        self.router = router
        if self.experts is not None:
            self.experts = _static(new_counts(self.shape.num_experts, device)).copy_(self.experts)


def _static(tensor: Tensor) -> Tensor:
    """Tell the compiler that a tensor stays where it is, and return it.

    PyTorch records no CUDA graph of compiled code that changes a tensor, as it does counters, unless it knows
    that.
    """
    if not torch.compiler.is_compiling():
        torch._dynamo.mark_static_address(tensor)
    return tensor


def step_dtypes(model: nn.Module) -> tuple[StepDtypes, ...]:
    """Return the dtypes that a model's routers may give.

    Ids are int64, as `torch.topk` returns them. Weights stay float32, or are cast to a dtype of the model.
    """
    found = {torch.float32} | {parameter.dtype for parameter in model.parameters()}
    return tuple(StepDtypes(torch.int64, weights) for weights in WEIGHT_DTYPES if weights in found)


def hook_calls(
    modules: list[nn.Module], call: CurrentCall, layers: list[HookedLayer]
) -> list[RemovableHandle]:
    """Set the hooks that begin and end a call.

    Args:
        modules: The modules around all layers that are called with tokens, the outermost first.
        call: The state to write.
        layers: Whose scores are forgotten after a call.
    """
    handles = []
    call.modules = modules
    for module in modules:
        begin = _Begin(call, forward_names(type(module)), innermost=module is modules[-1])
        handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
        # Also when the call fails: a later call of an inner module must not find an old one.
        handles.append(module.register_forward_hook(_End(call, layers), always_call=True))
    return handles


def hook_experts(module: nn.Module, layer: HookedLayer, call: CurrentCall) -> list[RemovableHandle]:
    """Set the hooks that change what goes into an experts module and, with pairs, what comes out of it."""
    return [
        module.register_forward_pre_hook(_Reroute(layer, call)),
        module.register_forward_hook(_SumPairs(layer)),
    ]


def hook_router(model: nn.Module, layer: HookedLayer, call: CurrentCall) -> RemovableHandle:
    """Set the hook that keeps a router's scores for the policy.

    Raises:
        UnsupportedModel: No router is found beside the experts.
    """
    return find_router(model, layer.name, layer.shape.num_experts).register_forward_hook(
        _KeepScores(layer, call)
    )


def inert(*_: object) -> None:
    """Do nothing: what the hooks of a copied or saved model become."""


def _nothing() -> object:
    return inert


class _Hook:
    """A hook that stays with the model it was set on."""

    warns = False

    def __deepcopy__(self, memo: dict[int, Any]) -> object:
        self._warn("copied")
        return inert

    def __reduce__(self) -> tuple[Any, ...]:
        self._warn("saved")
        # A saved model then holds nothing of the handle.
        return _nothing, ()

    def _warn(self, what: str) -> None:
        if self.warns:
            logger.warning(
                "sere: a model was %s while re-routing was on; the copy is not re-routed, call sere.apply on "
                "it if it should be",
                what,
            )


class _Begin(_Hook):
    def __init__(self, call: CurrentCall, names: tuple[str, ...], *, innermost: bool) -> None:
        self.call, self.names, self.innermost = call, names, innermost
        # One line per model, not one per hook.
        self.warns = innermost

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call.enter(named(self.names, args, kwargs), module, innermost=self.innermost)


class _End(_Hook):
    def __init__(self, call: CurrentCall, layers: list[HookedLayer]) -> None:
        self.call, self.layers = call, layers

    def __call__(self, *_: object) -> None:
        self.call.leave()
        for layer in self.layers:
            layer.scores = None


class _Reroute(_Hook):
    def __init__(self, layer: HookedLayer, call: CurrentCall) -> None:
        self.layer, self.call = layer, call
        # The mark that sere.structure.is_rerouted looks for.
        self.sere_layer = layer.index

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        layer, call = self.layer, self.call
        if layer.flat.pending is not None:
            # Of a step that failed.
            layer.flat.pending = None
        if not call.active:
            return None
        if len(args) != 3:
            raise UnsupportedModel(
                f"{layer.name}: expected a call with hidden states, ids and weights by position, "
                f"got {len(args)} positional arguments"
            )
        hidden, ids, weights = args
        call.guard.hook_ran = True
        if call.exact and ids.shape[0] <= call.rows:
            return None
        rows = call.at(ids.device, ids.shape[0], layer.name)
        routing = layer.route(TokenBatch(ids, weights, *rows, layer.scores))
        return layer.flat.before(module, hidden, routing, rows[0])


class _SumPairs(_Hook):
    def __init__(self, layer: HookedLayer) -> None:
        self.layer = layer

    def __call__(self, _: nn.Module, __: object, output: Tensor) -> Tensor | None:
        return self.layer.flat.after(output)


class _KeepScores(_Hook):
    def __init__(self, layer: HookedLayer, call: CurrentCall) -> None:
        self.layer, self.call = layer, call

    def __call__(self, _: nn.Module, __: object, output: object) -> None:
        if self.call.active:
            self.layer.scores = scores_in(output, self.layer.shape.num_experts, self.layer.name)
