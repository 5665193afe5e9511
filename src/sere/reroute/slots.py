"""What rows and slots of a batch count, as tensors; shapes depend on T, K and E only."""

from __future__ import annotations

import torch
from torch import Tensor

from sere.reroute.constants import LAYER_BUDGET, MASS_BOUND, MASS_UNITS


def real_rows(topk_ids: Tensor, row_budgets: Tensor | None, num_tokens: Tensor | int | None) -> Tensor:
    """Return which rows are real, ``[T]`` bool, without host synchronization."""
    T = topk_ids.shape[0]
    real = torch.ones(T, dtype=torch.bool, device=topk_ids.device)
    if num_tokens is not None:
        real = real & (torch.arange(T, device=topk_ids.device) < num_tokens)
    if row_budgets is not None:
        real = real & ((row_budgets >= 0) | (row_budgets == LAYER_BUDGET))
    return real


def has_weight(weights: Tensor) -> Tensor:
    """Return which slots have a weight that counts, neither 0 nor NaN; bool, of the same shape."""
    return weights.abs() > 0


def members(ids: Tensor, slots: Tensor, E: int) -> Tensor:
    """Return the set of ids in the chosen slots.

    Args:
        ids: ``[T, K]``, integers.
        slots: ``[T, K]``, bool; ids outside [0, E) must not be chosen.
        E: Number of experts.

    Returns:
        ``[E]``, bool.
    """
    spare = torch.zeros(E + 1, dtype=torch.bool, device=ids.device)
    index = torch.where(slots, ids.long(), E).flatten()
    return spare.scatter(0, index, torch.ones_like(index, dtype=torch.bool))[:E]


def weight_ranks(weights: Tensor, valid: Tensor) -> Tensor:
    """Return each slot's rank among its row's valid slots: weights descending, ties to the lower slot.

    Args:
        weights: ``[T, K]``, floating point.
        valid: ``[T, K]``, bool: slots that count.

    Returns:
        ``[T, K]``, int64; 0 for the heaviest.
    """
    mine, other = weights[:, :, None], weights[:, None, :]
    slot = torch.arange(weights.shape[1], device=weights.device)
    before = (other > mine) | ((other == mine) & (slot[None, :] < slot[:, None]))
    return (before & valid[:, None, :]).sum(dim=2)


def whole_budgets(
    row_budgets: Tensor | None, select_top_k: Tensor | int, num_rows: int, device: torch.device
) -> Tensor:
    """Return each row's budget, ``[T]``: the layer's S for rows that have none of their own.

    Args:
        row_budgets: ``[T]``, integers, or None.
        select_top_k: S of the layer, an integer or a tensor of shape ``[]``.
        num_rows: T.
        device: Where the rows are.
    """
    if row_budgets is None:
        return torch.zeros(num_rows, dtype=torch.int64, device=device) + select_top_k
    return torch.where(row_budgets == LAYER_BUDGET, select_top_k, row_budgets)


def mass_units(weights: Tensor) -> Tensor:
    """Return fourth powers of weights, none of them NaN, in units of 2⁻³⁴, at most ``MASS_BOUND``.

    Returns:
        int64; fewer than ``MOST_SLOTS`` of them add up to less than 2⁶³ in any order.
    """
    square = weights.double().square()
    return torch.round(square * square * MASS_UNITS).clamp(max=MASS_BOUND).long()


def expert_masses(ids: Tensor, weights: Tensor, valid: Tensor, sensitivity: Tensor) -> Tensor:
    """Return each expert's mass: the sum of its slots' weights to the fourth power, times its sensitivity.

    Args:
        ids: ``[T, K]``, integers.
        weights: ``[T, K]``, floating point.
        valid: ``[T, K]``, bool: slots that count, of rows that are not protected.
        sensitivity: ``[E]``, float32, in (0, 1].

    Returns:
        ``[E]``, float64; the sum is one of integers, so the order of addition changes nothing.
    """
    E = sensitivity.shape[0]
    units = mass_units(torch.where(valid, weights, 0))
    mass = torch.zeros(E + 1, dtype=torch.int64, device=ids.device)
    mass = mass.scatter_add(0, torch.where(valid, ids.long(), E).flatten(), units.flatten())[:E]
    return mass.double() * sensitivity.double()


def places(order: Tensor) -> Tensor:
    """Return each expert's place in an order of all experts, ``[E]`` int64, 0 for the first.

    Args:
        order: ``[E]``, int64: expert ids, each once.
    """
    return torch.empty_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))


def choose_primary(
    keep: Tensor,
    kept: Tensor,
    chosen: Tensor,
    mass: Tensor,
    most: Tensor | int,
    *,
    cap: bool,
) -> Tensor:
    """Return the primary set P but for the experts of protected rows, ``[E]`` bool.

    Args:
        keep: Experts that are never replaced, ``[E]``, bool.
        kept: Experts in kept slots of rows that are not protected, ``[E]``, bool.
        chosen: Experts in any valid slots of these rows, ``[E]``, bool: the only ones that become primary.
        mass: Of these slots, ``[E]``, float64, as `expert_masses` returns it.
        most: M, an integer or a tensor of shape ``[]``.
        cap: Whether M bounds P, too, and does not only fill it.

    Source: docs/method.md section 4, step 3.
    """
    fixed = keep & chosen
    kept = kept & ~fixed
    # By class, then by mass, ties to the lower id: two stable sorts.
    by_mass = mass.sort(descending=True, stable=True).indices
    classes = fixed.int() * 3 + kept.int() * 2 + (chosen & ~fixed & ~kept).int()
    order = by_mass[classes[by_mass].sort(descending=True, stable=True).indices]
    rank = places(order)
    least = fixed.sum() if cap else (fixed | kept).sum()
    return chosen & (rank < least.clamp(min=most))
