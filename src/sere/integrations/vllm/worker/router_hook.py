"""Where re-routing enters vLLM: behind each MoE layer's router, before anything else sees the ids.

Only while a model is being built is anything of vLLM's replaced: the constructor of ``MoERunner``, to learn
of the layers, and the question which expert kernels will do. What stays is one attribute on each router
object of an engine that asked for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.worker.expert_kernels import decomposed_kernels
from sere.integrations.vllm.worker.layer import RoutedLayer
from sere.reroute import Routing

ROUTER_METHOD = "_compute_routing"


@contextmanager
def report_layers(found: Callable[[Any], None]) -> Iterator[None]:
    """Report each MoE layer that is built in this context.

    Layers of a drafter of speculative decoding are not reported: only the target is re-routed.

    Args:
        found: Called with each finished ``MoERunner``.
    """
    from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEExperts
    from vllm.model_executor.layers.fused_moe.runner import moe_runner

    runner_class = moe_runner.MoERunner
    construct, builder = runner_class.__init__, get_ident()

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        # Another thread may build the model of another engine, which did not ask.
        if get_ident() == builder and not _in_drafter():
            found(self)

    with ExitStack() as stack:
        stack.enter_context(decomposed_kernels(FusedMoEExperts))
        runner_class.__init__ = __init__
        stack.callback(setattr, runner_class, "__init__", construct)
        yield


def intercept(router: Any, layer: RoutedLayer) -> None:
    """Let ``layer.route`` see and change what a router returns.

    Args:
        router: A router object of vLLM; its class stays as it is.
        layer: Its ``route`` is looked up at every step, so that it can be replaced.

    Raises:
        UnsupportedEngine: The router lacks the method, or something has replaced the method already.
    """

    def act(_: Tensor, logits: Tensor, ids: Tensor, weights: Tensor) -> Routing:
        return layer.route(ids, weights, logits)

    after_router(router, layer.name, act)


def after_router(router: Any, name: str, act: Callable[[Tensor, Tensor, Tensor, Tensor], Routing]) -> None:
    """Let ``act`` see and change what a router returns.

    Args:
        router: A router object of vLLM; its class stays as it is.
        name: The layer's, for error texts.
        act: Given hidden states ``[T, H]``, logits ``[T, E]``, ids and weights ``[T, K]``.

    Raises:
        UnsupportedEngine: The router lacks the method, or something has replaced the method already.
    """
    original = getattr(router, ROUTER_METHOD, None)
    if original is None:
        raise UnsupportedEngine(
            f"{name}: its router {type(router).__name__} has no {ROUTER_METHOD}; expected a subclass "
            "of vLLM's BaseRouter"
        )
    if ROUTER_METHOD in vars(router):
        raise UnsupportedEngine(
            f"{name}: {ROUTER_METHOD} of its router has been replaced already, by {_origin(original)}; "
            "two plug-ins cannot both change the routing, so switch one off (VLLM_PLUGINS says which to load)"
        )

    def routed(
        hidden_states: Tensor, router_logits: Tensor, indices_type: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        weights, ids = original(hidden_states, router_logits, indices_type, **kwargs)
        routing = act(hidden_states, router_logits, ids, weights)
        # Only here the order is vLLM's.
        return routing.weights, routing.ids

    setattr(router, ROUTER_METHOD, routed)


def _in_drafter() -> bool:
    """Whether the model being built is a drafter; vLLM tags what it compiles."""
    from vllm.compilation import backends

    return bool(getattr(backends, "model_tag", "backbone") != "backbone")


def _origin(function: Any) -> str:
    inner = getattr(function, "__func__", function)
    return f"{getattr(inner, '__module__', '?')}.{getattr(inner, '__qualname__', type(inner).__name__)}"
