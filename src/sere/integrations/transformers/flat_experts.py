"""Let an experts module on a CPU compute only the pairs of a row and an expert that carry weight."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from sere.flatten import (
    Costs,
    PairCounts,
    Pairs,
    costs_of,
    find_pairs,
    measure,
    skip_empty_slots,
    sum_by_row,
    why_not,
)
from sere.reroute import Routing
from sere.structure import ExpertsLayer
from sere.table import GAINS_LEFT_OUT, SimilarityTable

logger = logging.getLogger("sere")

EAGER = "eager"
# Compute each slot by itself, whatever the number of slots per row, and read no id twice.
_PAIRS = ("grouped_mm", "batched_mm")

ExpertsArguments = tuple[Tensor, Tensor, Tensor]


class FlatExperts:
    """Changes what goes into one experts module and, with pairs, what comes out of it.

    The eager experts loop over the experts. Most skip an id: slots without weight get it, and all else stays.
    The others, ``grouped_mm`` and ``batched_mm`` are given the pairs as rows with one slot each.

    It keeps no reference to the module, because statistics may outlive the model.

    Args:
        module: The experts module.
        num_experts: E, routed experts.
        top_k: K, routed slots per row.
        setting: The setting ``flatten``.

    Attributes:
        counts: What was computed.
        noticed: Why the last re-routed step computed all slots, or None.
        pending: The rows of the pairs that are being computed and T, or None.
        break_even: What was measured for this kind of layer, or None.
        find: Finds the pairs of a step's ids and weights. A timing puts recorded pairs in its place.
        skip: The same for experts that skip an id, which is given last.
    """

    def __init__(self, module: nn.Module, num_experts: int, top_k: int, setting: str) -> None:
        self.num_experts, self.top_k, self.setting = num_experts, top_k, setting
        self.counts = PairCounts()
        self.noticed: str | None = None
        self.pending: tuple[Tensor, int] | None = None
        self.break_even: Costs | None = None
        self.find: Callable[[Tensor, Tensor], Pairs] = find_pairs
        self.skip: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, int]] = skip_empty_slots
        self._never = why_no_pairs(module, setting)
        self._skips: bool | None = None

    @property
    def why_not(self) -> str | None:
        """Why all slots are computed: always, or in the last re-routed step; None where pairs may be."""
        return self._never or self.noticed

    def before(
        self, module: nn.Module, hidden: Tensor, routing: Routing, budgets: Tensor | None
    ) -> ExpertsArguments:
        """Return what the experts module is called with.

        Args:
            module: The experts module.
            hidden: ``[T, H]``.
            routing: Of the step, ``[T, K]`` each.
            budgets: The rows' budgets, ``[T]``, or None. A row that keeps all its experts stays as it is, bit
                for bit, so that a step with such a row computes all slots.
        """
        given = (hidden, *routing)
        if self._never is not None or torch.compiler.is_compiling():
            return given
        self.pending = None
        self.noticed = self._why_not_now(module, hidden, routing, budgets)
        if self.noticed is not None:
            return given
        if _implementation(module) == EAGER and self._skips_an_id(module, *given):
            return self._skip(hidden, routing)
        pairs = self.find(*routing)
        n, slots = len(pairs.rows), routing.ids.numel()
        if n == slots or n == 0:
            return given
        if self.setting == "auto" and n > self._costs(module, hidden, routing).most_pairs(*routing.ids.shape):
            self.counts.whole += 1
            return given
        self.counts.add(slots, n)
        self.pending = pairs.rows, hidden.shape[0]
        return hidden.index_select(0, pairs.rows), pairs.ids, pairs.weights

    def after(self, output: Tensor) -> Tensor | None:
        """Return the output of the rows where the module computed pairs, else None."""
        if self.pending is None:
            return None
        (rows, T), self.pending = self.pending, None
        return sum_by_row(output, rows, T)

    def _skip(self, hidden: Tensor, routing: Routing) -> ExpertsArguments:
        ids, weights, n = self.skip(*routing, self.num_experts)
        if n == ids.numel():
            return hidden, *routing
        self.counts.add(ids.numel(), n)
        return hidden, ids, weights

    def _why_not_now(
        self, module: nn.Module, hidden: Tensor, routing: Routing, budgets: Tensor | None
    ) -> str | None:
        ids, weights = routing
        if torch.is_grad_enabled():
            return "gradients are recorded; decode under torch.no_grad()"
        if hidden.ndim != 2 or ids.shape[:1] != hidden.shape[:1] or weights.shape != ids.shape:
            return "the experts are called with tensors of another form than [T, H] and [T, K]"
        if budgets is not None and bool((budgets >= self.top_k).any()):
            return "a row keeps all its experts"
        return _why_not_as_it_is(module)

    def _skips_an_id(self, module: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> bool:
        """Whether the module takes the id E, which is no expert's; tried once, on a row without weight."""
        if self._skips is None:
            empty = torch.full_like(ids[:1], self.num_experts), torch.zeros_like(weights[:1])
            try:
                self._skips = not module.forward(hidden[:1], *empty).any()
            except (RuntimeError, IndexError):
                self._skips = False
        return self._skips

    def _costs(self, module: nn.Module, hidden: Tensor, routing: Routing) -> Costs:
        sizes = tuple((tensor.shape, tensor.dtype) for tensor in module.parameters())
        key = (type(module), _implementation(module), self.top_k, sizes)
        self.break_even = costs_of(key, partial(_measure, module, hidden, routing, self.num_experts))
        return self.break_even


def _implementation(module: nn.Module) -> str:
    """Return how an experts module computes at present."""
    # A class that Transformers lets compute in several ways has this; the others have a loop of their own.
    if not hasattr(module, "is_transposed"):
        return EAGER
    return str(getattr(module.config, "_experts_implementation", None) or EAGER)


def _why_not_as_it_is(module: nn.Module) -> str | None:
    """Return why an experts module cannot skip a slot at present; Transformers can change that later."""
    implementation = _implementation(module)
    if implementation not in (EAGER, *_PAIRS):
        return f"experts_implementation={implementation!r} is not known to take pairs"
    if getattr(module, "_is_expert_parallel", False):
        return "the experts are spread over several processes"
    return None


def fit_gains(table: SimilarityTable, layers: Iterable[ExpertsLayer], setting: str) -> SimilarityTable:
    """Return a table for a model: without its tiers' least gains if no layer can skip a slot as it is.

    Args:
        table: The table.
        layers: The model's experts.
        setting: The setting ``flatten``.
    """
    if any((why_no_pairs(one.module, setting) or _why_not_as_it_is(one.module)) is None for one in layers):
        return table
    fitted = table.without_gains()
    if fitted is not table:
        logger.info("sere: %s", GAINS_LEFT_OUT)
    return fitted


def why_no_pairs(module: nn.Module, setting: str) -> str | None:
    """Return why an experts module computes all slots in every step, or None if it may compute pairs.

    Args:
        module: The experts module.
        setting: The setting ``flatten``.
    """
    if setting == "off":
        return "flatten is 'off'"
    if any(tensor.device.type != "cpu" for tensor in module.parameters()):
        return "the experts are not on a CPU"
    if hasattr(module, "_hf_hook"):
        return "the experts' weights are moved or loaded for each call"
    return why_not()


def _measure(module: nn.Module, hidden: Tensor, routing: Routing, E: int) -> Costs:
    """Time an experts module on rows like the first of a step."""
    ids, weights = routing

    def states(T: int) -> Tensor:
        return hidden[:1].expand(T, -1).contiguous()

    def pairs(found: Pairs, T: int) -> Tensor:
        rows = states(T).index_select(0, found.rows)
        return sum_by_row(module.forward(rows, found.ids, found.weights), found.rows, T)

    return measure(
        lambda ids, weights: module.forward(states(len(ids)), ids, weights),
        pairs,
        E=E,
        K=ids.shape[1],
        ids_dtype=ids.dtype,
        weights_dtype=weights.dtype,
    )
