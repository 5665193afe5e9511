"""What an engine hands to a routing rule in one step of one layer, and what it gets back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class StepDtypes(NamedTuple):
    """The dtypes of a step.

    Attributes:
        ids: Of the expert ids, int32 or int64.
        weights: Of the gate weights, a floating-point one.
    """

    ids: torch.dtype
    weights: torch.dtype

    def __str__(self) -> str:
        ids, weights = (str(dtype).removeprefix("torch.") for dtype in self)
        return f"{ids} ids and {weights} weights"


# What most engines route by, and so what a backend is tried with where nothing else is known.
USUAL_DTYPES = (StepDtypes(torch.int32, torch.float32),)


class TokenBatch(NamedTuple):
    """One step of one layer, in the one order that every engine, rule and backend uses.

    Attributes:
        topk_ids: Expert ids, ``[T, K]``, int32 or int64. Never modified.
        topk_weights: Gate weights, ``[T, K]``, floating point. Never modified.
        row_budgets: ``[T]``, int32 or int64, or None: how many slots of each row are primary; -2 means the
            layer's S. Another negative budget marks a padding row, a budget of K or more protects the row.
        num_tokens: N, an integer or a tensor of shape ``[]`` or ``[1]``, or None for T; rows from N on are
            padding.
        router_scores: ``[T, E]``, the router's scores of all experts, higher is better, or None; rules with
            ``needs_scores`` get them.
    """

    topk_ids: Tensor
    topk_weights: Tensor
    row_budgets: Tensor | None = None
    num_tokens: Tensor | int | None = None
    router_scores: Tensor | None = None


class Routing(NamedTuple):
    """The result of a routing rule: the engine's expert kernel runs on it unchanged.

    Attributes:
        ids: Expert ids, ``[T, K]``, dtype and device as in the batch.
        weights: Gate weights, ``[T, K]``, dtype and device as in the batch.
    """

    ids: Tensor
    weights: Tensor
