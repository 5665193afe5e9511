"""Checks of the arguments of one step, whichever rule routes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sere.config import MOST_INT, as_integer
from sere.errors import InputError
from sere.reroute.batch import TokenBatch
from sere.reroute.constants import LAYER_BUDGET, MOST_SLOTS, PADDING_BUDGET
from sere.reroute.stats import COUNTERS
from sere.similarity.layer import check_tensor

ID_DTYPES = (torch.int32, torch.int64)
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_batch(batch: TokenBatch, counters: Tensor | None = None) -> None:
    """Refuse a step that no rule can route, by shape, dtype and device: no value of a tensor is read.

    Args:
        batch: The step; fewer than 2²⁵ slots, K at least 1. The router's scores are not looked at.
        counters: int64, one entry per name in ``COUNTERS``, or None.

    Raises:
        InputError: Something is wrong; the text says what was expected.
    """
    ids, weights, row_budgets, num_tokens, _ = batch
    check_tensor("topk_ids", ids)
    check_tensor("topk_weights", weights)
    _check_slots(ids, weights)
    if row_budgets is not None:
        _check_row_budgets(row_budgets, ids)
    if num_tokens is not None:
        _check_num_tokens(num_tokens, ids)
    if counters is not None:
        _check_counters(counters, ids)


def as_row_budgets(
    row_budgets: Tensor | Sequence[int] | None, device: torch.device | None = None
) -> Tensor | None:
    """Return budgets as a tensor; one that is a tensor already, or None, as it is.

    Args:
        row_budgets: ``[T]``; a sequence may hold integers of any size.
        device: Where the tensor is to be.

    Raises:
        InputError: It is not a sequence of integers.
    """
    if row_budgets is None or isinstance(row_budgets, Tensor):
        return row_budgets
    try:
        given = list(row_budgets)
    except TypeError:
        raise InputError(
            f"row_budgets: expected one integer per row, got {row_budgets!r} ({type(row_budgets).__name__})"
        ) from None
    budgets = [_as_budget(budget) for budget in given]
    # By name: the default device may be another than the host.
    return torch.tensor(budgets, dtype=torch.int32, device=device or "cpu")


def _as_budget(budget: object) -> int:
    try:
        # No row has MOST_INT slots; all padding is alike.
        number = as_integer(budget)
        return min(MOST_INT, number) if number >= LAYER_BUDGET else PADDING_BUDGET
    except TypeError:
        raise InputError(
            f"row_budgets: expected one integer per row, got {budget!r} ({type(budget).__name__})"
        ) from None


def check_dtypes(ids: torch.dtype, weights: torch.dtype) -> None:
    """Refuse dtypes that a step cannot have.

    Raises:
        InputError: One is wrong; the text says what was expected.
    """
    if ids not in ID_DTYPES:
        raise InputError(f"topk_ids: expected int32 or int64, got {ids}; convert the ids first")
    if weights not in WEIGHT_DTYPES:
        raise InputError(f"topk_weights: expected a floating-point dtype, got {weights}")


def _check_slots(ids: Tensor, weights: Tensor) -> None:
    if ids.ndim != 2 or ids.shape != weights.shape:
        raise InputError(
            "expected topk_ids and topk_weights of the same shape [T, K], "
            f"got {list(ids.shape)} and {list(weights.shape)}"
        )
    check_dtypes(ids.dtype, weights.dtype)
    if weights.device != ids.device:
        raise InputError(
            f"expected topk_ids and topk_weights on the same device, got {ids.device} and {weights.device}"
        )
    if ids.shape[1] == 0:
        raise InputError(f"topk_ids: expected at least one slot per row, got shape {list(ids.shape)}")
    # Compiled graphs are made for any T: a bound on it would be one more guard.
    if not torch.compiler.is_compiling() and ids.numel() >= MOST_SLOTS:
        raise InputError(
            f"topk_ids: expected fewer than 2^25 slots in a step (T x K), got {list(ids.shape)}; "
            "route the rows in several calls"
        )


def _check_counters(counters: Tensor, ids: Tensor) -> None:
    check_tensor("counters", counters)
    if counters.dtype != torch.int64 or counters.shape != (len(COUNTERS),):
        raise InputError(
            f"counters: expected int64 of shape [{len(COUNTERS)}], "
            f"got {counters.dtype} of {list(counters.shape)}"
        )
    if counters.device != ids.device:
        raise InputError(f"counters: expected {ids.device} like the ids, got {counters.device}")
    if not counters.is_contiguous():
        raise InputError(
            f"counters: expected a contiguous tensor, got strides {list(counters.stride())}; they are added "
            "to in place, so make them with torch.zeros"
        )


def _check_row_budgets(budgets: Tensor, ids: Tensor) -> None:
    check_tensor("row_budgets", budgets)
    if budgets.shape != ids.shape[:1] or budgets.dtype not in ID_DTYPES or budgets.device != ids.device:
        raise InputError(
            f"row_budgets: expected {ids.shape[0]} integers (int32 or int64) on {ids.device}, one per row, "
            f"got {budgets.dtype} of shape {list(budgets.shape)} on {budgets.device}"
        )


def _check_num_tokens(num_tokens: Tensor | int, ids: Tensor) -> None:
    if isinstance(num_tokens, Tensor):
        if num_tokens.ndim > 1 or num_tokens.numel() != 1 or num_tokens.dtype not in ID_DTYPES:
            raise InputError(
                "num_tokens: expected one integer (int32 or int64, of shape [] or [1]), "
                f"got {num_tokens.dtype} of shape {list(num_tokens.shape)}"
            )
    elif isinstance(num_tokens, bool) or not isinstance(num_tokens, int | np.integer):
        raise InputError(f"num_tokens: expected an integer or a tensor with one, got {num_tokens!r}")
    elif not 0 <= num_tokens <= ids.shape[0]:
        raise InputError(f"num_tokens: expected 0 to {ids.shape[0]} (the number of rows), got {num_tokens}")
