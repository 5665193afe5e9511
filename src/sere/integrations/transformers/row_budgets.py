"""Which row of a call has which budget: the caller's, the policy's own, or that of padding."""

from __future__ import annotations

import torch
from torch import Tensor

from sere.config import MOST_INT
from sere.errors import InputError
from sere.integrations.transformers.inputs import CallInputs
from sere.reroute.constants import LAYER_BUDGET, PADDING_BUDGET


def absent_positions(call: CallInputs, past: Tensor | int, finished_token: int | None) -> Tensor | None:
    """Return which positions are padding or belong to finished rows.

    Args:
        call: What the model was called with.
        past: Positions in the cache.
        finished_token: The token that finished rows are fed, or None if no row can have finished.

    Returns:
        ``[B, q]``, bool; None if all are known to be real.
    """
    finished = None
    if call.tokens is not None and finished_token is not None:
        finished = call.tokens == finished_token
    if call.mask is None:
        return finished
    masked = _columns(call.mask, past, call.q) == 0
    return masked if finished is None else finished | masked


def position_budgets(call: CallInputs, absent: Tensor | None, given: Tensor | None) -> Tensor | None:
    """Return the budget of each position of a call.

    Args:
        call: What the model was called with.
        absent: What `absent_positions` returned.
        given: ``[B]``, integers: the caller's budgets, or None.

    Returns:
        ``[B * q]``, integers: ``PADDING_BUDGET`` at absent positions, ``LAYER_BUDGET`` where the caller gave
        none; None if that is so in every row.
    """
    if absent is None:
        return None if given is None else given[:, None].expand(call.B, call.q).reshape(-1)
    if given is None:
        wanted: Tensor | int = LAYER_BUDGET
    else:
        # Once here instead of in each layer; budgets may be int64 of any size.
        wanted = given.masked_fill(given < LAYER_BUDGET, PADDING_BUDGET).clamp(max=MOST_INT)[:, None]
    return torch.where(absent, PADDING_BUDGET, wanted).to(torch.int32).reshape(-1)


def some_padding(budgets: Tensor) -> bool:
    """Whether a row is padding; the host reads the budgets.

    Args:
        budgets: ``[B * q]``, integers: what `position_budgets` returned.
    """
    return bool(((budgets < 0) & (budgets != LAYER_BUDGET)).any())


def check_length(given: Tensor, B: int) -> None:
    """Refuse budgets of another batch.

    Args:
        given: The caller's budgets.
        B: Rows of this call.

    Raises:
        InputError: There are more or fewer budgets than rows.
    """
    if given.shape[0] != B:
        raise InputError(
            f"row_budgets: expected one integer per row, {B} for this step, got {given.shape[0]}; "
            "set handle.row_budgets to one integer per row, or to None"
        )


def _columns(mask: Tensor, past: Tensor | int, q: int) -> Tensor:
    """The columns of this call's positions in a mask ``[B, L]`` that may reach beyond them."""
    L = mask.shape[1]
    if isinstance(past, Tensor):
        positions = (torch.arange(q, device=mask.device) + past.to(mask.device)).clamp(max=L - 1)
        return mask.index_select(1, positions)
    return mask[:, past : past + q] if past + q <= L else mask[:, -q:]
