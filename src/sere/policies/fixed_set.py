"""What rules with a fixed set of experts share: its size, the table, and the greedy choice of the set.

Source: docs/method.md section 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sere.errors import ConfigError, TableError, name_some
from sere.policies.base import LayerShape
from sere.policies.baseline import Baseline, check_count
from sere.policies.idle import why_all_fit
from sere.reroute.slots import has_weight
from sere.similarity.layer import LayerSimilarity
from sere.table import RoutingSample, SimilarityTable

# What an expert adds to a set is summed in units of 2⁻³⁰ of the most important expert's loss.
_UNITS = 2**30


@dataclass(frozen=True)
class FixedSetBaseline(Baseline):
    """A baseline whose experts are the same in every step.

    Attributes:
        size: Experts per layer, at least 1.
        table: The similarity table; settings are checked without one, layers are not prepared.

    Raises:
        ConfigError: ``size`` is not an integer of at least 1.
    """

    needs_table: ClassVar[bool] = True
    given_elsewhere: ClassVar[frozenset[str]] = frozenset({"table"})

    size: int
    table: SimilarityTable | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        check_count("size", self.size)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], table: SimilarityTable | None) -> Self:
        """Build the rule from its options and a table."""
        return cls(**options, table=table)

    def similarity_of(self, layer: LayerShape) -> LayerSimilarity:
        """Return the similarities of one layer.

        Raises:
            ConfigError: There is no table.
            TableError: The table has no such layer, or another number of experts there.
        """
        if self.table is None:
            raise ConfigError(f"policy {self.name!r}: needs a similarity table; give one as table=")
        found = self.table.layers.get(layer.index)
        if found is None:
            raise TableError(
                f"no similarities for layer {layer.index}; the table has the layers "
                f"[{name_some(sorted(self.table.layers))}]"
            )
        if found.num_experts != layer.num_experts:
            raise TableError(
                f"layer {layer.index}: expected E = {layer.num_experts} experts as in the model, got "
                f"{found.num_experts} in the table; calibrate again"
            )
        return found

    @property
    def routing(self) -> RoutingSample | None:
        """The table's sample of the routing, if it has one."""
        return None if self.table is None else self.table.routing

    def why_idle(self, layers: Iterable[LayerShape]) -> list[str]:
        """Return why the settings re-route nothing: the set has all experts; see `Policy`."""
        return why_all_fit("size", self.size, layers)


def most_used_set(layer: LayerSimilarity, routing: RoutingSample | None, index: int, size: int) -> Tensor:
    """Return the experts in the most slots of a sample of the routing, ``[E]`` bool (ties: the lower id).

    Args:
        layer: Similarities of the layer.
        routing: The sample, or None: then the experts are those of `greedy_set`.
        index: Decoder-layer index.
        size: Experts to choose; all if there are fewer.
    """
    if routing is None or index not in routing.ids:
        return pool_of(layer, routing, index, size)
    uses = _sums_by_expert(routing, index, torch.ones_like)
    order = uses.sort(descending=True, stable=True).indices[:size]
    return torch.zeros(layer.num_experts, dtype=torch.bool, device=uses.device).scatter(0, order, True)


def pool_of(layer: LayerSimilarity, routing: RoutingSample | None, index: int, size: int) -> Tensor:
    """Return the experts that `greedy_set` chooses, by the loss of the sample's slots if there is a sample.

    What is lost where expert e is dropped is about ``Σ w² ‖Y_e‖²`` over its slots.

    Args:
        layer: Similarities of the layer.
        routing: The sample, or None: then every expert counts alike.
        index: Decoder-layer index.
        size: Experts to choose; all if there are fewer.
    """
    importance = torch.ones(layer.num_experts, dtype=torch.float64, device=layer.similarity.device)
    if routing is not None and index in routing.ids:
        energy = routing.energy[index].double().nan_to_num(nan=0.0)
        importance = _sums_by_expert(routing, index, torch.square) * energy
    return greedy_set(layer.similarity, importance, size)


def greedy_set(similarity: Tensor, importance: Tensor, size: int) -> Tensor:
    """Choose the experts that lose least when they replace all others.

    One after the other, the expert that lowers ``Σ_e importance_e (1 - max_p similarity_ep)`` most; p is in
    the set (ties: the lower id). An unknown similarity counts as 0. Sums are integers.

    Args:
        similarity: ``[E, E]``, NaN where it is not known, diagonal 1.
        importance: ``[E]``, at least 0, finite: what is lost if an expert is dropped.
        size: Experts to choose, at least 1; all if there are fewer.

    Returns:
        ``[E]``, bool.
    """
    E = len(importance)
    known = similarity.double().nan_to_num(nan=0.0)
    weight = importance.double()
    weight = weight / weight.max() if bool(weight.max() > 0) else torch.ones_like(weight)
    # At most 2³⁰ a pair: 2³³ experts would overflow the sums.
    worth = torch.round(known * weight[:, None] * _UNITS).long()
    covered = torch.zeros(E, 1, dtype=torch.int64, device=worth.device)
    chosen = torch.zeros(E, dtype=torch.bool, device=worth.device)
    for _ in range(min(size, E)):
        gain = (worth - covered).clamp(min=0).sum(dim=0)
        # argmax: of equal ones the first.
        best = int(torch.where(chosen, -1, gain).argmax())
        chosen[best] = True
        covered = torch.maximum(covered, worth[:, best, None])
    return chosen


def _sums_by_expert(routing: RoutingSample, index: int, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return each expert's sum of a function of the weights of its slots, ``[E]``, float64."""
    ids, weights = routing.ids[index].long().flatten(), routing.weights[index].double().flatten()
    E = len(routing.energy[index])
    counts = (ids >= 0) & (ids < E) & has_weight(weights)
    sums = torch.zeros(E, dtype=torch.float64, device=ids.device)
    return sums.index_add(0, ids[counts], of(weights[counts]))
