"""From a router's scores to the weights that it would give to experts a row did not choose."""

from __future__ import annotations

import torch
from torch import Tensor

from sere.errors import InputError
from sere.policies.baseline import LayerBatch

# Gates are summed in units of 2⁻³⁰, each at most 2³⁸: fewer than 2²⁵ of them add up to less than 2⁶³.
GATE_UNITS, GATE_BOUND = 2**30, 2**38


def gate_units(gates: Tensor) -> Tensor:
    """Return gates, none of them NaN, as integers in units of 2⁻³⁰, from 0 to ``GATE_BOUND``.

    Returns:
        int64; a gate below 0 counts as 0, one above 256 as 256.
    """
    return torch.round(gates.double() * GATE_UNITS).clamp(0, GATE_BOUND).long()


def gate_sums(batch: LayerBatch, gates: Tensor) -> Tensor:
    """Return each expert's sum of gates over all real rows that are not protected, in units of 2⁻³⁰.

    Args:
        batch: The step.
        gates: ``[T, E]``, float64, finite.

    Returns:
        ``[E]``, int64; the order of addition changes nothing.
    """
    return gate_units(torch.where(batch.open_rows[:, None], gates, 0.0)).sum(dim=0)


def gates_from_scores(batch: LayerBatch, name: str) -> Tensor:
    """Estimate the gate weight of every expert for every row.

    Routers show logits or probabilities, and weigh by softmax or sigmoid; which of them it is can be told
    from the weights of the chosen slots. Selection biases, groups and temperatures are not known here.

    Args:
        batch: The step, with the router's ``scores`` of all experts.
        name: The policy's name, for the error.

    Returns:
        ``[T, E]``, float64, finite, at least 0, rising with the score, 0 for scores of -∞ and NaN; each row
        scaled so that its chosen slots sum to their weights, where that sum is finite.

    Raises:
        InputError: The scores are missing or have another shape.
    """
    ids, weights, scores = batch.ids, batch.weights, batch.scores
    expected = (ids.shape[0], batch.num_experts)
    if scores is None or tuple(scores.shape) != expected:
        shape = "None" if scores is None else str(list(scores.shape))
        raise InputError(f"policy {name!r}: expected router scores of shape {list(expected)}, got {shape}")
    raw = scores.double()
    wanted = raw > -torch.inf
    raw = raw.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    safe = torch.where(batch.inside, ids.long(), 0)
    given = torch.where(batch.valid, weights.double(), 0.0)
    sums = given.sum(dim=1, keepdim=True)
    share = given / sums.clamp(min=1e-30)
    candidates, errors = [], []
    for gates in (raw.softmax(dim=1), raw.sigmoid(), raw.clamp(min=1e-30)):
        gates = torch.where(wanted, gates, 0.0)
        chosen = torch.where(batch.valid, gates.gather(1, safe), 0.0)
        total = chosen.sum(dim=1, keepdim=True).clamp(min=1e-30)
        factor = sums / total
        candidates.append((gates * torch.where(torch.isfinite(factor), factor, 1.0)).nan_to_num())
        told = batch.valid & torch.isfinite(sums)
        errors.append(torch.where(told, (chosen / total - share).abs(), 0.0).sum())
    best = torch.stack(errors).argmin()
    return torch.stack(candidates).index_select(0, best[None])[0]
