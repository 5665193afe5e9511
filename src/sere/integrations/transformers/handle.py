"""What ``apply`` returns: statistics, per-call settings, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sere.config import RerouteConfig
from sere.errors import InputError
from sere.integrations.transformers.hooks import HookedLayer
from sere.integrations.transformers.step import Step
from sere.policies.base import Policy
from sere.reroute.checks import ID_DTYPES, as_budget
from sere.reroute.stats import LayerStats, layer_stats


class Handle:
    """Re-routing that is active on a model, until `remove` or the end of a ``with`` block.

    Attributes:
        policy: The rule that changes the routing.
        config: The settings, or None where a policy without them was given instead.
    """

    def __init__(
        self,
        layers: list[HookedLayer],
        step: Step,
        hooks: list[RemovableHandle],
        policy: Policy,
        config: RerouteConfig | None,
    ) -> None:
        self._layers, self._step, self._hooks = layers, step, hooks
        self.policy, self.config = policy, config

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    @property
    def active(self) -> bool:
        """Whether the hooks are set."""
        return bool(self._hooks)

    def remove(self) -> None:
        """Take every hook off the model; a second call does nothing. `stats` stays readable."""
        # A compiled graph does not look at hooks, but it does look at this.
        self._step.enabled = False
        self._step.clear()
        while self._hooks:
            self._hooks.pop().remove()

    @property
    def enabled(self) -> bool:
        """Whether the next call is re-routed; set it to False to run the model as it was, hooks in place.

        Compiled code heeds it, at the price of one more compilation.
        """
        return self._step.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._step.enabled = bool(value) and self.active

    @property
    def row_budget(self) -> Tensor | None:
        """Budgets of the rows of the batch, ``[B]``, from the next step on; None for the policy's own.

        A budget of K or more protects its row: it keeps its experts, which others may use. A negative
        one says that the row is padding or has finished: it does not vote, and its output is void.
        Beam search has one row per beam.

        Raises:
            InputError: On setting what is not one dimension of integers. A length that is not the
                batch's is found at the next step.
        """
        return self._step.row_budget

    @row_budget.setter
    def row_budget(self, budget: Sequence[int] | Tensor | None) -> None:
        values = as_budget(budget)
        if values is not None and (values.ndim != 1 or values.dtype not in ID_DTYPES):
            raise InputError(
                "row_budget: expected one integer per row of the batch, "
                f"got {values.dtype} of shape {list(values.shape)}"
            )
        self._step.row_budget = values

    def stats(self) -> list[LayerStats]:
        """Read the counters of all layers; this is where the host waits for the device."""
        return [layer_stats(layer.index, layer.name, layer.counters.tolist()) for layer in self._layers]

    def reset_stats(self) -> None:
        """Set all counters to zero."""
        for layer in self._layers:
            layer.counters.zero_()
