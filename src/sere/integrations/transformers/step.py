"""What one call of the model is: a decode step or not, and which of its rows are real."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sere.config import MOST_INT
from sere.errors import InputError, UnsupportedModel

_CACHE_NAMES = ("past_key_values", "cache_params", "past_key_value")


class Step:
    """The state that the model's hook writes before each call and the layers' hooks read during it.

    Attributes:
        enabled: Whether calls are re-routed at all; compiled code guards on it, not on hooks.
        active: Whether the layers of this call are re-routed.
        rows: T, the rows that the experts will see; 0 outside a call.
        budget: ``[T]``, integers, or None where every row has the policy's own budget.
        num_tokens: T or 0 as a tensor, where only the device knows whether the cache is empty; else None.
    """

    def __init__(self, *, all_phases: bool, pad_token_id: int | None, default_budget: int) -> None:
        self.all_phases = all_phases
        self.pad_token_id = pad_token_id
        self.default_budget = default_budget
        self.enabled = True
        self.row_budget: Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Leave every layer alone until the next call of the model."""
        self.active = False
        self.rows = 0
        self.budget: Tensor | None = None
        self.num_tokens: Tensor | None = None

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Read a call's inputs: its phase from their length and the cache, its rows from tokens and mask.

        Raises:
            InputError: ``row_budget`` has another length than the batch.
        """
        self.clear()
        tokens = inputs.get("input_ids")
        given = tokens if tokens is not None else inputs.get("inputs_embeds")
        if not self.enabled or given is None:
            return
        B, q = int(given.shape[0]), int(given.shape[1])
        past = _past_length(inputs)
        cached = isinstance(past, Tensor) or past > 0
        decoding = q == 1 and cached
        if not (decoding or self.all_phases):
            return
        self.budget = self._budget(tokens if decoding else None, inputs.get("attention_mask"), past, B, q)
        if isinstance(past, Tensor) and not self.all_phases:
            self.num_tokens = ((past > 0).to(torch.int32) * B).to(given.device)
        self.rows = B * q
        self.active = True

    def at(self, device: torch.device, rows: int, name: str) -> tuple[Tensor | None, Tensor | None]:
        """Return the rows' budgets and ``num_tokens`` on a layer's device.

        Raises:
            UnsupportedModel: The layer sees other rows than the model was called with.
        """
        budget, num_tokens = self.budget, self.num_tokens
        if budget is not None:
            if rows != self.rows:
                raise UnsupportedModel(
                    f"{name}: expected {self.rows} rows (batch times positions), got {rows}; this layer sees "
                    "a part of the tokens only, so that it is not known which rows are padding. "
                    "Use phases='decode'"
                )
            if budget.device != device:
                self.budget = budget = budget.to(device, non_blocking=True)
        if num_tokens is not None and num_tokens.device != device:
            self.num_tokens = num_tokens = num_tokens.to(device, non_blocking=True)
        return budget, num_tokens

    def _budget(
        self, tokens: Tensor | None, mask: object, past: Tensor | int, B: int, q: int
    ) -> Tensor | None:
        """Budgets per row, ``[B * q]``: -1 where a row is padding, the caller's or the default elsewhere."""
        absent = None
        if tokens is not None and tokens.ndim == 2 and self.pad_token_id is not None:
            absent = tokens == self.pad_token_id
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == B:
            masked = _columns(mask, past, q) == 0
            absent = masked if absent is None else absent | masked
        budget = self._row_budget(B, absent.device if absent is not None else None)
        if budget is None and absent is None:
            return None
        if absent is None:
            assert budget is not None
            return budget[:, None].expand(B, q).reshape(-1)
        wanted = self.default_budget if budget is None else budget[:, None]
        # Once here instead of in each layer; budgets may be int64 of any size.
        return torch.where(absent, -1, wanted).clamp(-1, MOST_INT).to(torch.int32).reshape(-1)

    def _row_budget(self, B: int, device: torch.device | None) -> Tensor | None:
        budget = self.row_budget
        if budget is None:
            return None
        if budget.shape[0] != B:
            raise InputError(
                f"row_budget: this step has {B} rows, but {budget.shape[0]} budgets were given; "
                "set handle.row_budget to one integer per row, or to None"
            )
        if device is not None and budget.device != device:
            self.row_budget = budget = budget.to(device, non_blocking=True)
        return budget


def forward_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the positional parameters of a model's ``forward``."""
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _past_length(inputs: Mapping[str, Any]) -> Tensor | int:
    """Positions in the cache: an integer, or a tensor (static caches) that must not be read on the host."""
    for name in _CACHE_NAMES:
        cache = inputs.get(name)
        if cache is not None and hasattr(cache, "get_seq_length"):
            length = cache.get_seq_length()
            return length if isinstance(length, Tensor) else int(length)
    return 0


def _columns(mask: Tensor, past: Tensor | int, q: int) -> Tensor:
    """The columns of this call's positions in a mask ``[B, L]`` that may reach beyond them."""
    L = mask.shape[1]
    if isinstance(past, Tensor):
        places = (torch.arange(q, device=mask.device) + past.to(mask.device)).clamp(max=L - 1)
        return mask.index_select(1, places)
    return mask[:, past : past + q] if past + q <= L else mask[:, -q:]
