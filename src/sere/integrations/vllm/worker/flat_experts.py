"""Let vLLM's expert kernel on a CPU compute only the pairs of a row and an expert that carry weight.

The kernel is vLLM's own, called with other rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sere.flatten import Costs, PairCounts, Pairs, costs_of, find_pairs, measure, sum_by_row, why_not
from sere.integrations.vllm.worker.row_budgets import RowBudgets

# A child of vLLM's logger: its lines come out where and as the engine's own do.
logger = logging.getLogger("vllm.sere")

# Kernels that compute each slot by itself, whatever the number of slots per row, so that a row with one slot
# is a row like any other, in no workspace of the caller. The first and the last were run, the first also as
# the three between, which are subclasses with other tile sizes; the last one's call was run without its
# tiles.
TAKES_PAIRS = frozenset(
    {
        "CPUUnquantizedExperts",
        "X86CPUUnquantizedExperts", "ArmCPUUnquantizedExperts", "PowerCPUUnquantizedExperts",
        "CPUExpertsInt8",
    }
)  # fmt: skip
Call = Callable[[Tensor, Tensor, Tensor, Tensor], object]
"""Computes experts into the first argument, ``[rows, H]``, from hidden states, weights and ids."""


def why_no_pairs(setting: str, device_type: str, kernel: str | None) -> str | None:
    """Return why this engine computes all slots in every step, or None if it may compute pairs.

    Args:
        setting: The setting ``flatten``.
        device_type: Where the model runs.
        kernel: Class name of the expert kernel, or None where it cannot be told.
    """
    if setting == "off":
        return "flatten is 'off'"
    if device_type != "cpu":
        return "the model does not run on a CPU"
    if kernel not in TAKES_PAIRS:
        return f"the expert kernel {kernel or 'in use'} is not known to take pairs"
    return why_not()


class Kind(NamedTuple):
    """What the times of a layer's expert kernel depend on.

    Attributes:
        kernel: Class name of the kernel.
        experts: E.
        slots: K, slots per row.
        dtype: Of the hidden states.
        hidden_size: H.
        weight_shape: Of the first of the kernel's weights, as the kernel keeps it.
        weight_dtype: The same.
    """

    kernel: str
    experts: int
    slots: int
    dtype: torch.dtype
    hidden_size: int
    weight_shape: tuple[int, ...]
    weight_dtype: torch.dtype

    def describe(self) -> str:
        """Return it in words, which are others for each kind: workers' statistics are joined by them."""
        dtype, weight_dtype = (str(one).removeprefix("torch.") for one in (self.dtype, self.weight_dtype))
        return (
            f"{self.experts} experts, {self.slots} slots per row, hidden size {self.hidden_size} "
            f"({self.kernel}, {dtype}, weights {weight_dtype} {list(self.weight_shape)})"
        )


@dataclass(slots=True)
class FlatKernels:
    """Whether the expert kernels of one engine compute pairs only; each kind of layer is logged once.

    Attributes:
        setting: The setting ``flatten``.
        speaks: Whether this worker writes to the log.
        why_not: Why all slots are computed in every step; None where pairs may be.
        most_slots: The largest K of any layer.
        ranks: How many ranks compute each layer. Each measures for itself, and only what all of them know may
            decide which slots are given up.
        break_evens: By kind of layer, up to which share of the slots pairs are faster, once a step has run.
    """

    setting: str = "auto"
    speaks: bool = True
    why_not: str | None = None
    most_slots: int = 0
    ranks: int = 1
    break_evens: dict[Kind, Costs] = field(default_factory=dict)

    @property
    def unmeasured(self) -> bool:
        """Whether it is still to be measured where pairs are faster, in the next step."""
        return self.why_not is None and self.setting == "auto" and not self.break_evens

    def compute_all_slots(self, rows: int, largest_budget: int) -> bool:
        """Whether every layer surely computes all slots of a step.

        Args:
            rows: How many it has.
            largest_budget: Of its rows; one that keeps all its experts forbids pairs.
        """
        if largest_budget >= self.most_slots:
            return True
        if self.ranks > 1 or not self.break_evens:
            return False
        return all(costs.most_pairs(rows, kind.slots) == 0 for kind, costs in self.break_evens.items())

    def add(self, kind: Kind, costs: Costs) -> None:
        """Note what was measured for a kind of layer."""
        if kind not in self.break_evens and self.speaks:
            logger.info(
                "sere: flatten: in layers with %s, only the slots that carry weight are computed where they "
                "are at most this share of all: %s",
                kind.describe(),
                costs.describe(),
            )
        self.break_evens[kind] = costs

    def report(self) -> dict[str, Any]:
        """Return the same as plain numbers and texts, with `Costs.points` by kind of layer."""
        measured = {kind.describe(): costs.points() for kind, costs in self.break_evens.items()}
        return {"setting": self.setting, "why_not": self.why_not, "break_even": measured}


class FlatExperts:
    """The expert kernel of one layer.

    Args:
        apply: The kernel's own ``apply``.
        experts: E of the layer.
        setting: ``"auto"`` or ``"on"``.
        budgets: The budgets of the coming step's rows.
        counts: Counts what was computed; None for new ones.
        kernels: Of the engine; None for new ones.

    Attributes:
        enabled: Whether steps may be flattened; not where the rule changes nothing on purpose.
        find: Finds the pairs of a step's ids and weights. A timing puts recorded pairs in its place.
    """

    def __init__(
        self,
        apply: Callable[..., object],
        experts: int,
        setting: str,
        budgets: RowBudgets,
        counts: PairCounts | None = None,
        kernels: FlatKernels | None = None,
    ) -> None:
        self.apply, self.experts, self.setting, self.budgets = apply, experts, setting, budgets
        self.counts = PairCounts() if counts is None else counts
        self.kernels = FlatKernels(setting) if kernels is None else kernels
        self.enabled = True
        self.find: Callable[[Tensor, Tensor], Pairs] = find_pairs
        self._costs: Costs | None = None

    def __call__(
        self, call: Call, w1: Tensor, output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor
    ) -> None:
        """Compute one step.

        Args:
            call: The kernel.
            w1: The first of its weights, whose form tells kinds of layers apart.
            output: ``[T, H]``, written.
            hidden: ``[T, H]``.
            weights: ``[T, K]``.
            ids: ``[T, K]``.
        """
        T, K = ids.shape
        if self._costs is None and self.setting == "auto" and T:
            # In a start-up step, before any request.
            kind = self._kind(w1, hidden, K)
            self._costs = self._measured(kind, call, hidden, weights, ids)
            self.kernels.add(kind, self._costs)
        # A row that keeps all its experts stays as it is, bit for bit: all rows have all slots then.
        if not self.enabled or self.budgets.largest >= K or ids.dtype not in (torch.int32, torch.int64):
            call(output, hidden, weights, ids)
            return
        pairs = self.find(ids, weights)
        n, slots = len(pairs.rows), T * K
        if n == slots or n == 0:
            call(output, hidden, weights, ids)
            return
        if self._costs is not None and n > self._costs.most_pairs(T, K):
            self.counts.whole += 1
            call(output, hidden, weights, ids)
            return
        self.counts.add(slots, n)
        output.copy_(_compute(call, hidden, pairs, T))

    def _kind(self, w1: Tensor, hidden: Tensor, K: int) -> Kind:
        kernel = type(getattr(self.apply, "__self__", None)).__name__
        return Kind(kernel, self.experts, K, hidden.dtype, hidden.shape[1], tuple(w1.shape), w1.dtype)

    def _measured(self, kind: Kind, call: Call, hidden: Tensor, weights: Tensor, ids: Tensor) -> Costs:
        def all_slots(ids: Tensor, weights: Tensor) -> None:
            states = hidden[:1].expand(len(ids), -1).contiguous()
            call(torch.empty_like(states), states, weights, ids)

        def pairs(found: Pairs, T: int) -> Tensor:
            return _compute(call, hidden[:1].expand(T, -1).contiguous(), found, T)

        form = {"ids_dtype": ids.dtype, "weights_dtype": weights.dtype}
        measured = partial(measure, all_slots, pairs, E=kind.experts, K=kind.slots, **form)
        # The engine's log says it, for each engine of this process.
        return costs_of(kind, measured, log=False)


def _compute(call: Call, hidden: Tensor, pairs: Pairs, T: int) -> Tensor:
    states = hidden.index_select(0, pairs.rows)
    outputs = torch.empty_like(states)
    call(outputs, states, pairs.weights, pairs.ids)
    return sum_by_row(outputs, pairs.rows, T)
