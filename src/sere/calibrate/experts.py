"""Outputs of every expert of a layer for the same tokens, through the model's own experts module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sere.calibrate.offload import is_offloaded
from sere.errors import UnsupportedModel
from sere.structure import ExpertsLayer

# Tokens on which a layer is checked to be the weighted sum of its experts' outputs.
_CHECKED = 8
# By how much the two may differ, relatively: rounding stays well below, another formula does not.
_ALLOWED = {torch.float64: 1e-3, torch.float32: 1e-3}
_ALLOWED_16_BIT = 0.05


def expert_outputs(layer: ExpertsLayer, hidden: Tensor) -> Tensor:
    """Compute ``Y_e(x)``, before the gate weight, for every expert of a layer.

    The module's own ``forward`` runs with one slot per token, filled with expert e and weight 1, for each
    e: biases, fused or separate weights and unusual activations are the model's own. Hooks do not fire.

    Args:
        layer: The experts module; see `sere.structure.find_experts`.
        hidden: Hidden states as the module gets them, ``[t, H]``, of its dtype, on its device.

    Returns:
        ``[E, t, H]``, float32, on the same device.

    Source: docs/method.md section 3.
    """
    outputs = torch.empty(layer.num_experts, *hidden.shape, dtype=torch.float32, device=hidden.device)
    with torch.no_grad(), experts_implementation(layer.module, _fastest(layer.module, hidden)) as name:
        # Offloaded weights are loaded at each call, so there should be only one.
        together = name == "grouped_mm" or is_offloaded(layer.module)
        step = layer.num_experts if together else _experts_per_call(layer.module, len(hidden))
        for first in range(0, layer.num_experts, step):
            last = min(first + step, layer.num_experts)
            outputs[first:last] = _some(layer, hidden, first, last)
    return outputs


def _experts_per_call(module: nn.Module, t: int) -> int:
    """Return how many experts a call computes for t tokens each; a serving engine's module limits its rows.

    A module of Transformers computes only the expert that a call asks for, so more would not be faster.
    """
    most_rows = getattr(module, "most_rows", None)
    return 1 if most_rows is None or t == 0 else max(1, int(most_rows) // t)


def check_weighted_sum(
    layer: ExpertsLayer, hidden: Tensor, ids: Tensor, weights: Tensor, outputs: Tensor
) -> None:
    """Check that the module's output is the sum of its experts' outputs times the gate weights.

    Args:
        layer: The experts module.
        hidden: ``[t, H]``.
        ids: The router's choice, ``[t, K]``.
        weights: Its gate weights, ``[t, K]``.
        outputs: What `expert_outputs` returned for ``hidden``, ``[E, t, H]``.

    Raises:
        UnsupportedModel: It is not, as where the weight is applied to an expert's input: outputs before
            the gate weight then do not exist. Rows with ids outside [0, E) are left out.
    """
    rows = ((ids >= 0) & (ids < layer.num_experts)).all(dim=1).nonzero().flatten()[:_CHECKED]
    if rows.numel() == 0:
        return
    with torch.no_grad():
        whole = layer.module.forward(hidden[rows], ids[rows], weights[rows]).float().reshape(len(rows), -1)
    parts = (outputs[ids[rows], rows[:, None]] * weights[rows].float()[..., None]).sum(dim=1)
    whole = whole.to(parts.device)
    error = float((parts - whole).norm() / whole.norm().clamp_min(torch.finfo(torch.float32).tiny))
    if not error <= _ALLOWED.get(hidden.dtype, _ALLOWED_16_BIT):
        raise UnsupportedModel(
            f"{layer.name} ({type(layer.module).__name__}): its output is not the sum of its experts' "
            f"outputs times the gate weights (relative difference {error:.2g}, expected rounding only); "
            "an expert's output before the gate weight cannot be computed, so it cannot be calibrated"
        )


@contextmanager
def experts_implementation(module: nn.Module, name: str) -> Iterator[str]:
    """Choose how a Transformers experts module computes; restore its choice at the end.

    Args:
        module: An experts module. One that has no such choice is left alone.
        name: ``"eager"``, ``"grouped_mm"``, ...

    Yields:
        ``name``.
    """
    config = getattr(module, "config", None)
    before = getattr(config, "_experts_implementation_internal", None)
    if before is None:
        yield name
        return
    # The inner attribute: the public setter would also change the configs of other parts of the model.
    config._experts_implementation_internal = name  # type: ignore[union-attr]
    try:
        yield name
    finally:
        config._experts_implementation_internal = before  # type: ignore[union-attr]


def _fastest(module: nn.Module, hidden: Tensor) -> str:
    # Eager computes only the expert asked for. On a GPU it waits for the host at each expert: there one
    # grouped product is faster. batched_mm would copy the weights once per token.
    chosen = getattr(getattr(module, "config", None), "_experts_implementation_internal", None)
    if chosen is not None and not _interchangeable(chosen):
        return str(chosen)
    return "grouped_mm" if hidden.is_cuda and chosen == "grouped_mm" else "eager"


def _interchangeable(name: str) -> bool:
    """Whether an implementation is one of Transformers' own for weights as its classes keep them.

    A function that somebody registered, under its own name or in place of one of these, may read weights
    that the class's own forward does not know; only it can compute them.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    function = ALL_EXPERTS_FUNCTIONS.get(name)
    if function is None:
        return name == "eager"
    return str(getattr(function, "__module__", "")).startswith("transformers.")


def _some(layer: ExpertsLayer, hidden: Tensor, first: int, last: int) -> Tensor:
    """Return the outputs of the experts from ``first`` to before ``last``, ``[last - first, t, H]``."""
    t, count = hidden.shape[0], last - first
    ids = torch.arange(first, last, device=hidden.device).repeat_interleave(t).unsqueeze(1)
    rows = hidden if count == 1 else hidden.repeat(count, 1)
    return _run(layer, rows, ids).reshape(count, t, -1)


def _run(layer: ExpertsLayer, hidden: Tensor, ids: Tensor) -> Tensor:
    """Run the module with expert ``ids[t]`` of weight 1 for row t, in one slot if its forward takes that.

    Some cannot take a single slot (LongCat's), and a registered experts function may need K: then further
    slots hold other experts with weight 0, which changes nothing.
    """
    first: Exception | None = None
    for slots in sorted({1, 2, layer.top_k}):
        others = torch.arange(slots, device=ids.device)
        weights = (others == 0).to(hidden.dtype).expand(len(ids), slots)
        try:
            output: Tensor = layer.module.forward(hidden, (ids + others) % layer.num_experts, weights)
            return output.reshape(hidden.shape)
        except (ValueError, RuntimeError, IndexError, AssertionError) as error:
            first = first or error
    assert first is not None  # the loop ran
    raise first
