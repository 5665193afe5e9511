"""Decode steps to expect: experts, pairs, time, off and re-routed, by the rows of a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from sere.config import RerouteConfig
from sere.outlook.calibration import chance
from sere.policies.base import LayerShape
from sere.policies.sere import Sere
from sere.reroute import TokenBatch
from sere.reroute.limits import layer_limits
from sere.reroute.stats import layer_stats
from sere.step_time import Ceilings, StepWeights, step_seconds
from sere.table import SimilarityTable
from sere.table.expected_loss import draw_steps
from sere.table.routing_sample import RoutingSample

ROWS = (1, 8, 16, 32, 64, 128)
"""Rows of the steps that are looked at."""
_STEPS = 16


@dataclass(frozen=True, slots=True)
class Step:
    """A step of decoding to expect, as means over the layers.

    Attributes:
        rows: Rows of the step.
        most: M, the experts that the default settings let a layer read.
        before: Distinct experts without re-routing.
        after: Distinct experts with it.
        pairs_before: Pairs of a row and an expert that are computed without re-routing.
        pairs_after: The same with it.
        fewer_bytes: How many times fewer bytes of weights the step reads; None if sizes are not known.
        seconds_before: Predicted time without re-routing; None if ceilings or sizes are not known.
        seconds_after: The same with it.
    """

    rows: int
    most: float
    before: float
    after: float
    pairs_before: float
    pairs_after: float
    fewer_bytes: float | None
    seconds_before: float | None
    seconds_after: float | None

    @property
    def ratio(self) -> float | None:
        """How many times faster the step is predicted to be; None if times are not known."""
        if self.seconds_before is None or self.seconds_after is None:
            return None
        return self.seconds_before / self.seconds_after


def expect_steps(
    shapes: Sequence[LayerShape],
    weights: StepWeights | None,
    ceilings: Ceilings | None,
    *,
    table: SimilarityTable | None = None,
    rows: Iterable[int] = ROWS,
) -> list[Step]:
    """Return what to expect of steps with default settings.

    With a table that has the router's choices on calibration tokens, the table's own settings route steps
    that are drawn from them. Otherwise rows are taken to choose their experts by chance.

    Args:
        shapes: The model's MoE layers, at least one.
        weights: The model's; None if not known.
        ceilings: The machine's; None if not measured.
        table: The model's, if it has one.
        rows: Numbers of rows.
    """
    if table is not None and ceilings is not None and ceilings.device != "cpu":
        # Engines leave them out where no slot is skipped.
        table = table.without_gains()
    rule = None if table is None else Sere(table.layers, table.settings(RerouteConfig()))
    sample = None if table is None else table.routing
    return [_step(shapes, weights, ceilings, rule, sample, count) for count in rows]


def _step(
    shapes: Sequence[LayerShape],
    weights: StepWeights | None,
    ceilings: Ceilings | None,
    rule: Sere | None,
    sample: RoutingSample | None,
    rows: int,
) -> Step:
    if rule is not None and sample is not None:
        cells = [_from_sample(rule, sample, shape, rows) for shape in shapes]
    else:
        cells = [_by_chance(rule, shape, rows) for shape in shapes]
    most, before, after, computed = (fmean(column) for column in zip(*cells, strict=True))
    slots = rows * fmean(shape.top_k for shape in shapes)
    fewer = None if weights is None else weights.fewer_bytes(before, after)
    times: list[float | None] = [None, None]
    if weights is not None and ceilings is not None:
        times = [
            step_seconds(weights, ceilings, rows=rows, experts=experts, pairs=pairs)
            for experts, pairs in ((before, slots), (after, computed))
        ]
    return Step(rows, most, before, after, slots, computed, fewer, *times)


def _by_chance(rule: Sere | None, shape: LayerShape, rows: int) -> tuple[float, ...]:
    """Return M, experts before and after, and pairs after, of rows that choose by chance."""
    S, M = _limits(rule, shape, rows)
    E, K = shape.num_experts, shape.top_k
    before = chance(E, K, rows)
    # The heaviest experts of the rows are read even where they are more than M.
    after = min(before, max(M, chance(E, min(S, K), rows)))
    return M, before, after, float(rows * K)


def _from_sample(rule: Sere, sample: RoutingSample, shape: LayerShape, rows: int) -> tuple[float, ...]:
    """Return the same of steps that are drawn from a table's sample and routed by the rule itself."""
    index = shape.index
    router = rule.bind(shape, torch.device("cpu"))
    for tokens in draw_steps(sample.starts, rows, steps=_STEPS):
        router(TokenBatch(sample.ids[index][tokens].int(), sample.weights[index][tokens].float()))
    found = layer_stats(index, "", router.counters.tolist())
    _, M = _limits(rule, shape, rows)
    return M, found.distinct_before, found.distinct_after, found.slots_computed * rows * shape.top_k


def _limits(rule: Sere | None, shape: LayerShape, rows: int) -> tuple[int, int]:
    """Return S and M of a layer for a step of so many rows; without a rule, of the default settings."""
    if rule is None:
        limits = layer_limits(RerouteConfig().for_layer(shape.index), shape.num_experts, shape.top_k)
    else:
        limits = rule.limits(shape)
    # S, then M for 1, 2, ... rows, then the least gain.
    return int(limits[0]), int(limits[min(rows, len(limits) - 2)])
