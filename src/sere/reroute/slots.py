"""What rows and slots of a batch count, as tensors; shapes depend on T, K and E only."""

from __future__ import annotations

import torch
from torch import Tensor

from sere.reroute.constants import MASS_BOUND, MASS_UNITS


def real_rows(topk_ids: Tensor, row_budgets: Tensor | None, num_tokens: Tensor | int | None) -> Tensor:
    """Return which rows are real, ``[T]`` bool, without host synchronization."""
    T = topk_ids.shape[0]
    real = torch.ones(T, dtype=torch.bool, device=topk_ids.device)
    if num_tokens is not None:
        real = real & (torch.arange(T, device=topk_ids.device) < num_tokens)
    if row_budgets is not None:
        real = real & (row_budgets >= 0)
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


def mass_units(weights: Tensor) -> Tensor:
    """Return weights, none of them NaN, as integers in units of 2⁻²⁴, at most ``MASS_BOUND`` in size; int64.

    Fewer than ``MOST_SLOTS`` of them add up to less than 2⁶³ in any order.
    """
    return torch.round(weights.double() * MASS_UNITS).clamp(-MASS_BOUND, MASS_BOUND).long()


def fill_up(
    primary: Tensor, occurring: Tensor, ids: Tensor, weights: Tensor, valid: Tensor, min_active: int
) -> Tensor:
    """Return the experts that join P so that it has ``min_active``, ``[E]`` bool.

    They join in the order of their mass, ties to the lower id; integer sums, so that the order of addition
    changes nothing.

    Args:
        primary: P, ``[E]``, bool.
        occurring: The experts of valid slots, ``[E]``, bool.
        ids: ``[T, K]``, integers.
        weights: ``[T, K]``, floating point.
        valid: ``[T, K]``, bool: slots that count.
        min_active: Least size of P.

    Source: docs/method.md section 4, step 3.
    """
    E = primary.shape[0]
    mass = torch.zeros(E + 1, dtype=torch.int64, device=ids.device)
    units = mass_units(torch.where(valid, weights, 0))
    mass = mass.scatter_add(0, torch.where(valid, ids.long(), E).flatten(), units.flatten())[:E]
    candidate = occurring & ~primary
    lightest = torch.iinfo(torch.int64).min
    by_mass = torch.where(candidate, mass, lightest).sort(descending=True, stable=True).indices
    rank = torch.empty_like(by_mass).scatter(0, by_mass, torch.arange(E, device=ids.device))
    return candidate & (rank < min_active - primary.sum())
