"""``torch.ops.sere.route_layer``: a step of one layer's routing on a CPU, opaque to the compiler.

Compiled code on a CPU calls Python in steps that may be re-routed, as nothing is captured there. So it names
the layer, and the step takes the same way as in an eager engine. After an expert kernel has streamed its
weights through the caches, each line of Python costs several times what it costs in a loop: that is why the
operation has few arguments, and why steps in which no row can be re-routed do not call it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sere.reroute import Routing

ATTRIBUTE = "sere_layer"
"""Where vLLM's ``MoERunner`` keeps the layer, so that compiled code finds it by the runner's name."""

_library = torch.library.Library("sere", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "route_layer(Tensor ids, Tensor weights, str layer) -> (Tensor, Tensor)"
)


def named_runner(layer: str) -> Any:
    """Return the ``MoERunner`` of that name in the engine whose step is under way."""
    return _forward_context()().no_compile_layers[layer]


@cache
def _forward_context() -> Callable[[], Any]:
    # An import statement in each step would cost more than the lookup.
    from vllm.forward_context import get_forward_context

    found: Callable[[], Any] = get_forward_context
    return found


def traced(ids: Tensor, weights: Tensor, layer: str, skips: Tensor) -> Routing:
    """Route one step while code for all steps is compiled.

    Args:
        ids: ``[T, K]``, on the CPU. Not modified.
        weights: ``[T, K]``. Not modified.
        layer: Name of the ``MoERunner``.
        skips: ``[1]``, bool: whether no row of the step that runs can be re-routed; read in each step.

    Returns:
        New ids and weights.
    """

    def keep(ids: Tensor, weights: Tensor) -> Any:
        return ids.clone(), weights.clone()

    def route(ids: Tensor, weights: Tensor) -> Any:
        return torch.ops.sere.route_layer(ids, weights, layer)

    return Routing(*torch.cond(skips, keep, route, (ids, weights)))


@torch.library.impl(_library, "route_layer", "CompositeExplicitAutograd")
def _route_layer(ids: Tensor, weights: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    new_ids, new_weights = getattr(named_runner(layer), ATTRIBUTE).route(ids, weights, None)
    # What an operation returns is never one of its arguments.
    return (
        ids.clone() if new_ids is ids else new_ids,
        weights.clone() if new_weights is weights else new_weights,
    )


@torch.library.register_fake("sere::route_layer", lib=_library)  # type: ignore[untyped-decorator]
def _fake(ids: Tensor, weights: Tensor, _: str) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(ids, memory_format=torch.contiguous_format),
        torch.empty_like(weights, memory_format=torch.contiguous_format),
    )
