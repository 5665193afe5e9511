"""The call of the model that is under way: a decode step or not, and the budgets of its rows."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _is_tracing

from sere.errors import ConcurrentCalls, InputError, UnsupportedModel
from sere.integrations.transformers.guard import Guard, capturing
from sere.integrations.transformers.inputs import CallInputs, past_length, read_call
from sere.integrations.transformers.row_budgets import (
    absent_positions,
    check_length,
    position_budgets,
    some_padding,
)
from sere.integrations.transformers.running import is_running
from sere.policies.base import LayerShape, Policy

_TAKING_OVER = threading.Lock()


class CurrentCall:
    """The state that the model's hooks write before each call and the layers' hooks read during it.

    Attributes:
        guard: Counts the calls.
        modules: The modules whose calls are entered, the outermost first.
        enabled: Whether calls are re-routed at all; compiled code guards on it, not on hooks.
        inputs: What the innermost module that is under way was called with, or None outside a call.
        counts_all: Whether the layers count also what surely changes nothing, for measurements.
        active: Whether the layers of this call are re-routed.
        exact: Whether it is known that no layer with at most ``rows`` rows changes anything in this call.
        rows: T, the rows that the experts will see; 0 outside a call.
        budget: ``[T]``, integers, or None if no row has one of its own; once prepared.
        num_tokens: T or 0 as a tensor, if only the device knows whether the cache is empty; else None.
    """

    def __init__(self, guard: Guard, *, all_phases: bool, pad_token_id: int | None) -> None:
        self.guard = guard
        self.modules: list[nn.Module] = []
        self.all_phases = all_phases
        self.pad_token_id = pad_token_id
        self.enabled = True
        self.counts_all = False
        self.row_budgets: Tensor | None = None
        self._most_exact = 0
        self.inputs: CallInputs | None = None
        self._thread: dict[str, int] = {}
        self.active = self.exact = False
        self.rows = 0
        self.budget: Tensor | None = None
        self.num_tokens: Tensor | None = None
        self._past: Tensor | int = 0
        self._prepared = self._decoding = False

    def enter(
        self, inputs: Mapping[str, Any], module: nn.Module | None = None, *, innermost: bool = True
    ) -> None:
        """Read the arguments of a call of the model, or of a module inside that takes tokens as well.

        Args:
            inputs: The arguments by name.
            module: The module that is called.
            innermost: Whether the layers come next, and no other module that calls this.

        Raises:
            ConcurrentCalls: A call in another thread is under way.
            InputError: ``row_budgets`` has another length than the batch, or the call cannot be re-routed
                because it is traced or computed again in the backward pass.
        """
        self._claim()
        self._forget_cut_off(module)
        outer = self.inputs
        self._rest()
        self.inputs = CallInputs(outer, module)
        self.inputs = call = read_call(inputs, outer, module)
        if not self.enabled:
            return
        past = past_length(call.cache)
        cached = isinstance(past, Tensor) or past > 0
        # Assisted decoding, and it alone, wants the logits of each of several positions of one row.
        verifying = cached and call.B == 1 and 1 < call.q == call.kept
        decoding = verifying or (cached and call.q == 1)
        self.active = call.q > 0 and (decoding or self.all_phases)
        if self.active:
            _refuse_repeats(module)
        self.rows = call.B * call.q
        self._decoding = decoding and not verifying
        self._past = past
        if torch.compiler.is_compiling():
            self.guard.compiled = True
        elif outer is None:
            self.guard.count(eligible=self.active, verifying=verifying and not self.all_phases)
        if not innermost:
            if isinstance(past, Tensor):
                # Now, because the layers move the end of the cache.
                self._past = past.clone()
        elif self.active:
            self.exact = self._changes_nothing()
            if self.exact:
                self.guard.count_exact(self.rows)
            elif not self._prepared:
                self._prepare()

    def follow(self, policy: Policy, layers: Iterable[LayerShape]) -> None:
        """Take in settings, from which it follows in which calls no layer can change anything.

        Args:
            policy: The rule that holds from now on.
            layers: The layers.
        """
        self._most_exact = min(map(policy.exact_rows, layers), default=0)

    def leave(self) -> None:
        """End the innermost call: every layer is left alone until the next one."""
        if not torch.compiler.is_compiling():
            me = threading.get_ident()
            if self._thread.get("of the call", me) != me:
                # The refused call of another thread ends; the one that is under way goes on.
                return
        self._rest()
        self.inputs = None if self.inputs is None else self.inputs.outer
        if self.inputs is None and not torch.compiler.is_compiling():
            self._thread.pop("of the call", None)

    def stop(self) -> None:
        """Leave everything alone from now on, also if a call is under way."""
        # A compiled graph does not look at hooks, but it does look at this.
        self.enabled = False
        self._rest()
        self.inputs = None
        self._thread.clear()

    def stopped(self) -> CurrentCall:
        """Return a copy that is of no call and re-routes nothing."""
        other = copy.copy(self)
        other._thread = {}
        other.stop()
        return other

    def at(self, device: torch.device, rows: int, name: str) -> tuple[Tensor | None, Tensor | None]:
        """Return the rows' budgets and ``num_tokens`` on a layer's device.

        Raises:
            UnsupportedModel: The layer sees other rows than the model was called with.
        """
        if not self._prepared:
            # The innermost module's forward was called in a way that passes over hooks.
            self._prepare()
        budget, num_tokens = self.budget, self.num_tokens
        if budget is not None:
            if rows != self.rows:
                raise UnsupportedModel(
                    f"{name}: expected {self.rows} rows (batch times positions), got {rows}; this layer sees "
                    "only part of the tokens, so it is not known which rows are padding. "
                    "Use phases='decode'"
                )
            if budget.device != device:
                self.budget = budget = budget.to(device, non_blocking=True)
        if num_tokens is not None and num_tokens.device != device:
            self.num_tokens = num_tokens = num_tokens.to(device, non_blocking=True)
        return budget, num_tokens

    def _changes_nothing(self) -> bool:
        """Whether it is known, without waiting for a device, that no layer changes anything in this call."""
        # Compiled code and captured graphs outlive the settings that this follows from.
        if self.counts_all or torch.compiler.is_compiling():
            return False
        if self.rows > self._most_exact or capturing():
            return False
        if self.rows == 1 and self.row_budgets is None:
            # One row leaves all its experts primary; if it is padding, there is no primary expert.
            return True
        self._prepare()
        if self.rows == 1 or self.row_budgets is not None:
            # Some of several rows may be padding, whose ids change.
            return self.rows == 1
        budget = self.budget
        return budget is None or (budget.device.type == "cpu" and not some_padding(budget))

    def _rest(self) -> None:
        self.active = self.exact = False
        self.rows = 0
        self.budget = self.num_tokens = None
        self._past = 0
        self._prepared = False
        self._decoding = False

    def _claim(self) -> None:
        """Take the state for this thread, in one step that no other thread can come between."""
        if torch.compiler.is_compiling():
            return
        me = threading.get_ident()
        owner = self._thread.setdefault("of the call", me)
        if owner != me and not is_running(self.modules, owner):
            with _TAKING_OVER:
                if self._thread.get("of the call") == owner:
                    # Ctrl-C ended that call, after which PyTorch runs no hooks.
                    self._thread["of the call"] = me
                    self.inputs = None
            owner = self._thread.setdefault("of the call", me)
        if owner != me:
            raise ConcurrentCalls(
                "the model was called in a second thread while a call in another thread is running: "
                "re-routing can follow only one call at a time. Put a lock around each call, or give each "
                "thread its own model"
            )

    def _forget_cut_off(self, module: nn.Module | None) -> None:
        """Forget calls that Ctrl-C ended, after which PyTorch runs no hooks."""
        if torch.compiler.is_compiling():
            return
        me, call = threading.get_ident(), self.inputs
        while call is not None and call.module is not None:
            # No module calls itself.
            if call.module is module or not is_running([call.module], me):
                self.inputs = call.outer
            call = call.outer

    def _prepare(self) -> None:
        """Work out the rows of this call, once for all layers."""
        call, past = self.inputs, self._past
        assert call is not None
        # Drafts of assisted decoding may hold the pad token as a word; rows of a decode step are finished.
        absent = absent_positions(call, past, self.pad_token_id if self._decoding else None)
        given = self._given_budgets(call.B, None if absent is None else absent.device)
        self.budget = position_budgets(call, absent, given)
        if isinstance(past, Tensor) and not self.all_phases:
            self.num_tokens = (past > 0).to(torch.int32) * self.rows
        self._prepared = True

    def _given_budgets(self, B: int, device: torch.device | None) -> Tensor | None:
        """The caller's budgets, moved to the device of the other inputs once."""
        given = self.row_budgets
        if given is None:
            return None
        check_length(given, B)
        if device is not None and given.device != device:
            self.row_budgets = given = given.to(device, non_blocking=True)
        return given


def _refuse_repeats(module: nn.Module | None) -> None:
    """Refuse a call whose layers would run once more, later, where it is not known what they are part of."""
    if torch.compiler.is_compiling():
        return
    if _is_tracing():
        raise InputError(
            "model: torch.jit.trace would keep this batch's choice of experts for every batch; trace the "
            "model without re-routing, or use torch.compile"
        )
    if torch.is_grad_enabled() and module is not None and any(map(_computed_twice, module.modules())):
        raise InputError(
            "model: with gradient checkpointing the backward pass computes the layers again, without "
            "re-routing, so that the gradients would be those of other experts; call "
            "model.gradient_checkpointing_disable(), or set handle.enabled = False while training"
        )


def _computed_twice(module: nn.Module) -> bool:
    return module.training and getattr(module, "gradient_checkpointing", False) is True
