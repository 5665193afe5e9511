"""Find a layer's router by structure, and its scores of all experts in what it returns."""

from __future__ import annotations

from torch import Tensor, nn

from sere.errors import UnsupportedModel


def find_router(model: nn.Module, experts_name: str, E: int) -> nn.Module:
    """Return the module beside the experts that scores every expert.

    It is the sibling of the experts module that holds, itself or in a linear layer, a weight matrix with
    one row per expert (or more: zero experts).

    Args:
        model: The model.
        experts_name: Module name of the experts.
        E: Experts of the layer.

    Raises:
        UnsupportedModel: There is none; the text names the layer.
    """
    parent = model.get_submodule(experts_name.rpartition(".")[0])
    found = [
        child
        for name, child in parent.named_children()
        if f".{name}" != experts_name[experts_name.rfind(".") :] and _scores_experts(child, E)
    ]
    # A dense MLP of the right width may match as well; a router then goes by its name.
    named = [c for n, c in parent.named_children() if c in found and ("gate" in n or "router" in n)]
    if len(named or found) != 1:
        raise UnsupportedModel(
            f"{experts_name}: this policy needs the router's scores of all {E} experts; expected one "
            f"module beside the experts that computes them, found {len(named or found)}; "
            "use a policy that does without, such as sere, topk or random"
        )
    return (named or found)[0]


def scores_in(output: object, E: int, name: str) -> Tensor:
    """Return the scores ``[T, E]`` in what a router returned.

    Raises:
        UnsupportedModel: No floating-point tensor of it has a column per expert.
    """
    # A tuple of types, because the compiler of PyTorch 2.9 does not know a union of them.
    parts = output if isinstance(output, (tuple, list)) else (output,)
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point() and part.shape[-1] >= E:
            return part.detach().reshape(-1, part.shape[-1])[:, :E]
    raise UnsupportedModel(
        f"{name}: this policy needs the router's scores of all {E} experts, but the router returns no "
        "floating-point tensor with a column for each; use a policy that does without, such as sere"
    )


def _scores_experts(module: nn.Module, E: int) -> bool:
    wide = [p for n, p in module.named_parameters() if n.rpartition(".")[2] == "weight" and p.ndim == 2]
    # More rows than experts are zero experts; twice as many would be some projection.
    return any(E <= p.shape[0] < 2 * E for p in wide)
