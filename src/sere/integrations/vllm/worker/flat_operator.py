"""Put `FlatExperts` before the expert kernel of one engine, for compiled code too.

The kernel object's ``apply`` is replaced on the instance. Compiled code cannot hold steps whose number of
pairs changes, so there the call is one opaque operation; steps in which no row can be re-routed call the
kernel as it is, without any Python of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sere.integrations.vllm.start import versions
from sere.integrations.vllm.worker.flat_experts import Call, FlatExperts, FlatKernels, why_no_pairs
from sere.integrations.vllm.worker.layer import RoutedLayer
from sere.integrations.vllm.worker.route_operator import named_runner
from sere.integrations.vllm.worker.row_budgets import RowBudgets

ATTRIBUTE = "sere_flat_experts"


def flatten_layers(
    layers: Mapping[int, RoutedLayer],
    kernels: Collection[str | None],
    budgets: RowBudgets,
    flat: FlatKernels,
) -> None:
    """Let the expert kernels compute pairs only, if all of them take pairs and the settings allow it.

    Args:
        layers: The layers by index, once their kernels are known; ``flat`` of each is set.
        kernels: Class names of their expert kernels, None where one cannot be told.
        budgets: The budgets of the coming step's rows.
        flat: The setting, and where it is noted why the kernels are left alone, or what is measured of them.
    """
    device = budgets.tensor.device.type
    reasons = (why_no_pairs(flat.setting, device, kernel) for kernel in sorted(kernels, key=str))
    flat.why_not = next(filter(None, reasons), None)
    if flat.why_not is not None:
        return
    flat.most_slots = max((layer.shape.top_k for layer in layers.values()), default=0)
    for layer in layers.values():
        kernel, _ = versions.expert_kernel(layer.runner)
        E, counts = layer.shape.num_experts, layer.pairs
        layer.flat = FlatExperts(kernel.apply, E, flat.setting, budgets, counts, flat)
        flatten(layer.runner, kernel, layer.flat)


def flatten(runner: Any, kernel: Any, flat: FlatExperts) -> None:
    """Let ``flat`` see every step of a layer's expert kernel.

    Args:
        runner: vLLM's ``MoERunner``, by whose name compiled code finds ``flat``.
        kernel: Its expert kernel; the class stays as it is.
        flat: Made with the kernel's own ``apply``.
    """
    name, original = str(runner.layer_name), flat.apply

    def apply(
        output: Tensor, hidden_states: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
        activation: Any, **rest: Any,
    ) -> Any:  # fmt: skip
        # Expert parallelism, quantized inputs, and weights on the input, which only K = 1 has.
        others = (rest.get(key) for key in ("expert_map", "a1q_scale", "a2_scale", "expert_tokens_meta"))
        if any(other is not None for other in others) or rest["apply_router_weight_on_input"]:
            return original(
                output, hidden_states, w1, w2, topk_weights, topk_ids, activation=activation, **rest
            )
        all_slots = _call(original, w1, w2, activation, rest)
        if not torch.compiler.is_compiling():
            flat(all_slots, w1, output, hidden_states, topk_weights, topk_ids)
            return None

        kind, E = activation.value, rest["global_num_experts"]

        # Inductor frees the arguments of a branch in the first branch only: so that is the one of prompts,
        # which have the most rows. Each tensor that either branch names becomes an argument of both.
        def left_alone(hidden: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
            found = torch.empty_like(hidden)
            all_slots(found, hidden, weights, ids)
            return found

        def pairs(hidden: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
            found = torch.empty_like(hidden)
            torch.ops.sere.flat_experts(found, hidden, w1, w2, weights, ids, name, kind, E)
            return found

        step = hidden_states, topk_weights, topk_ids
        output.copy_(torch.cond(flat.budgets.skips, left_alone, pairs, step))
        return None

    setattr(runner, ATTRIBUTE, flat)
    kernel.apply = apply


def _call(
    apply: Callable[..., object], w1: Tensor, w2: Tensor, activation: Any, rest: dict[str, Any]
) -> Call:
    def call(output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor) -> None:
        apply(output, hidden, w1, w2, weights, ids, activation=activation, **rest)

    return call


_library = torch.library.Library("sere", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "flat_experts(Tensor(a!) output, Tensor hidden, Tensor w1, Tensor w2, Tensor weights, Tensor ids, "
    "str layer, str activation, int num_experts) -> ()"
)


@torch.library.impl(_library, "flat_experts", "CompositeExplicitAutograd")
def _flat_experts(
    output: Tensor, hidden: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, layer: str,
    activation: str, num_experts: int,
) -> None:  # fmt: skip
    flat = getattr(named_runner(layer), ATTRIBUTE)
    # None of `TAKES_PAIRS` uses the workspaces.
    rest = {
        "global_num_experts": num_experts, "expert_map": None, "a1q_scale": None, "a2_scale": None,
        "workspace13": None, "workspace2": None, "expert_tokens_meta": None,
        "apply_router_weight_on_input": False,
    }  # fmt: skip
    flat(_call(flat.apply, w1, w2, _activation(activation), rest), w1, output, hidden, weights, ids)


@cache
def _activation(value: str) -> Any:
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    return MoEActivation(value)


@torch.library.register_fake("sere::flat_experts", lib=_library)  # type: ignore[untyped-decorator]
def _fake(*_: object) -> None:
    return None
