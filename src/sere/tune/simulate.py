"""What re-routing would change at M experts and B rows, from recorded routing: the model does not run."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.errors import TableError
from sere.reroute import TokenBatch, prepare_layer
from sere.similarity import LayerSimilarity
from sere.table import RoutingSample, SimilarityTable

# Tokens that are simulated per layer and batch size, where the sample has as many.
_TOKENS = 1024
# With large batches, at least so many steps, where the sample has enough tokens.
_STEPS = 16
# Numbers of experts at which each batch size is simulated.
_GRID = 10


@dataclass(frozen=True, slots=True)
class Simulated:
    """What steps of one number of rows at one M do in a layer, or on average over all layers.

    Attributes:
        error: Relative error of the layer's output, from 0 to about 1.
        before: Distinct experts per step without re-routing.
        after: The same with re-routing.
    """

    error: float
    before: float
    after: float


class Simulator:
    """Re-routes recorded tokens in steps as decoding forms them.

    Args:
        table: The similarities, with the router's choices on calibration tokens.
        seed: Seed of which tokens share a step.

    Raises:
        TableError: The table has no such choices.

    Source: docs/method.md section 4 (the operation) and docs/tuning.md (the relative error).
    """

    def __init__(self, table: SimilarityTable, *, seed: int = 0) -> None:
        if table.routing is None:
            raise TableError(
                "the table does not hold the router's choices on calibration tokens, from which tuning "
                "starts: an older sere made it, or a metric that needs no texts; calibrate again"
            )
        self._table, self._routing = table, table.routing
        self._order = _spread(table.routing, torch.Generator().manual_seed(seed))
        self._found: dict[tuple[int, int, int], Simulated] = {}

    @property
    def tokens(self) -> int:
        """Recorded tokens per layer; steps have no more rows than these."""
        return len(self._order)

    def curve(self, rows: int) -> dict[int, Simulated]:
        """Return the means over all layers on a grid of M, from K to where nothing is re-routed any longer.

        Args:
            rows: B.
        """
        identity = self._table.identity
        most = min(identity.num_experts, rows * identity.top_k)
        return {M: self.mean(rows, M) for M in grid(identity.top_k, most)}

    def mean(self, rows: int, active_experts: int) -> Simulated:
        """Return the means over all layers.

        Args:
            rows: B.
            active_experts: M.
        """
        found = [self.layer(index, rows, active_experts) for index in self._routing.ids]
        return Simulated(*(fmean(getattr(one, name) for one in found) for name in Simulated.__slots__))

    def layer(self, index: int, rows: int, active_experts: int) -> Simulated:
        """Return what happens in one layer.

        Args:
            index: Decoder-layer index.
            rows: B.
            active_experts: M.
        """
        key = (index, rows, active_experts)
        if key not in self._found:
            self._found[key] = self._simulate(*key)
        return self._found[key]

    def _simulate(self, index: int, rows: int, active_experts: int) -> Simulated:
        similarity, energy = self._table.layers[index].similarity, self._routing.energy[index]
        # The factors change no choice, and the similarities say what remains with the best factor.
        layer = prepare_layer(
            LayerSimilarity(similarity), RerouteConfig(active_experts=active_experts, use_scale=False)
        )
        rows = min(rows, self.tokens)
        count = min(self.tokens // rows, max(_STEPS, _TOKENS // rows))
        taken = self._order[: count * rows]
        ids, weights = self._routing.ids[index][taken].int(), self._routing.weights[index][taken].float()
        steps = zip(ids.split(rows), weights.split(rows), strict=True)
        routed = torch.cat([layer.route(TokenBatch(*step)).ids for step in steps])
        return Simulated(
            relative_error(ids, routed, weights, similarity, energy),
            _distinct(ids, count, len(energy)),
            _distinct(routed, count, len(energy)),
        )


def grid(least: int, most: int, count: int = _GRID) -> list[int]:
    """Return whole numbers from ``least`` to ``most``, each about the same factor above the one before."""
    if most <= least:
        return [most]
    ratio = most / least
    return sorted({round(least * ratio ** (i / (count - 1))) for i in range(count)})


def relative_error(
    ids: Tensor, routed: Tensor, weights: Tensor, similarity: Tensor, energy: Tensor
) -> float:
    """Return the squared error that re-routing is expected to cause, relative to dropping every slot.

    Args:
        ids: The router's ids, ``[T, K]``; those outside [0, E) count for nothing.
        routed: The same slots after re-routing.
        weights: The router's weights.
        similarity: ``[E, E]``; row e, column p: how well p replaces e.
        energy: Mean ``‖Y_e‖²``, ``[E]``; NaN where it is not known.
    """
    valid = (ids >= 0) & (ids < len(energy))
    e, p = ids[valid].long(), routed[valid].long()
    squares = weights[valid].double().square() * energy.nan_to_num(nan=float(energy.nanmean())).double()[e]
    # A slot that stays has similarity 1, on the diagonal.
    whole = float(squares.sum())
    return float((squares * (1 - similarity[e, p].double())).sum()) / whole if whole else 0.0


def _distinct(ids: Tensor, steps: int, E: int) -> float:
    """Return the mean number of distinct experts per step, of steps of equal size."""
    rows = ids.reshape(steps, -1).long()
    seen = torch.zeros(steps, E + 1, dtype=torch.bool)
    seen.scatter_(1, torch.where((rows >= 0) & (rows < E), rows, E), True)  # noqa: FBT003 - a value
    return float(seen[:, :E].sum()) / steps


def _spread(routing: RoutingSample, generator: torch.Generator) -> Tensor:
    """Return all tokens in an order in which neighbors are of different texts, as far as possible."""
    lengths = [end - start for start, end in pairwise(routing.starts.tolist())]
    # Each token's rank in a random order of its text; tokens by rank, and within one in a random order.
    ranks = torch.cat([torch.randperm(length, generator=generator) for length in lengths])
    draws = torch.rand(len(ranks), generator=generator, dtype=torch.float64)
    return (ranks.double() + draws).argsort()
