"""A tier's least gain: the one that should take the least time within the accepted loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sere.config import RerouteConfig
from sere.engines.side_by_side import SideBySide
from sere.eval.text import score_texts
from sere.integrations.transformers import apply
from sere.policies.sere import Sere
from sere.step_time import Ceilings, StepWeights
from sere.table.expected_loss import Expected
from sere.tune import gains, speed, work
from sere.tune.allocate import Allocation
from sere.tune.gains import Chosen, choose_gain
from sere.tune.measure import Loss
from sere.tune.plan import Goal
from sere.tune.plans import Plans
from sere.tune.run import Tuned, tune_plan
from sere.tune.search import Curve
from sere.tune.solve import Solution
from sere.tune.speed import Speed
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tuning import Breaking, meters_made, routed_table, tune_plan_of, tuned_model

# Slow at computing, so that pairs count.
CEILINGS = Ceilings(bytes_per_s=1e12, flops_per_s=1e9)
SPEED = Speed(StepWeights(1000, 100.0, 2, 500, 50.0), CEILINGS, 4.0)
PLANNED = Allocation(0.1, {1: 4, 4: 8, 8: 10, 256: 12})
PAIRS = {0.0: 4.0, 0.001: 3.5, 0.003: 3.0, 0.01: 2.0}


def cells_under(gain: float, pairs: dict[float, float] = PAIRS) -> Any:
    """Return what a table would say: the pairs of a row fall with the gain."""
    cells = {
        M: Expected((16 - M) / 16 * (1 + 10 * gain), 16.0, float(M), pairs[gain] + M / 16)
        for M in range(4, 17)
    }
    return {B: {0: {M: one._replace(pairs=B * one.pairs) for M, one in cells.items()}} for B in (4, 8, 256)}


class Measured:
    """Losses on the tuning prompts: within 0.1 from a number of experts on, which is given by the gain."""

    def __init__(self, enough: Callable[[float], int]) -> None:
        self.enough, self.min_gain = enough, 0.0
        self.asked: list[tuple[float, int, int]] = []

    def under(self, min_gain: float) -> Measured:
        """Return what a `Meter` would."""
        other = Measured(self.enough)
        other.min_gain, other.asked = min_gain, self.asked
        return other

    def loss(self, half: str, rows: int, plan: Any) -> Loss:
        """Return what a `Meter` would."""
        assert half == "tuning"
        self.asked.append((self.min_gain, rows, plan))
        kl = 0.05 if plan >= self.enough(self.min_gain) else 0.2
        return Loss(rows, [1] * 4, [kl] * 4, [kl] * 4, [1] * 4, 16.0, float(plan))


def chosen(meter: Measured, under: Callable[[float], Any] = cells_under, **changes: Any) -> Chosen:
    plans = Plans.uniform(under(0.0))
    curves = {B: Curve(plans.errors(B), lambda _: 0.0, known={8: 0.09}) for B in (4, 8)}
    values = {"planned": PLANNED, "speed": SPEED} | changes
    found = Solution(plans, curves)
    return choose_gain(values["planned"], found, under, [4, 8], meter, values["speed"])  # type: ignore[arg-type]


def test_the_largest_gain_that_costs_nothing_is_taken() -> None:
    """The middle one is measured, then the next larger one; M stays where the loss does."""
    meter = Measured(lambda _: 4)
    found = chosen(meter)
    assert found.best.min_gain == 0.01
    assert found.best.allocation.by_rows == PLANNED.by_rows
    assert meter.asked == [(0.003, 4, 8), (0.003, 8, 10), (0.01, 4, 8), (0.01, 8, 10)]
    assert [one["kept"] for one in found.describe()] == [False, False, True]


def test_more_experts_are_read_where_a_gain_loses_more() -> None:
    """M grows; if no time is saved any longer, the smaller gain is tried."""
    some = chosen(Measured(lambda gain: 9 if gain else 8))
    assert all(one.allocation.at(4) >= 9 and one.allocation.at(8) >= 10 for one in some.tried[1:])
    slow = {0.0: 4.0, 0.001: 3.5, 0.003: 3.4, 0.01: 3.3}
    meter = Measured(lambda gain: 16 if gain > 0.001 else 8)
    found = chosen(meter, lambda gain: cells_under(gain, slow))
    assert found.best.min_gain == 0.001
    assert found.best.allocation.by_rows == PLANNED.by_rows
    assert {gain for gain, _, _ in meter.asked} == {0.001, 0.003}


def test_a_gain_that_saves_no_time_is_not_measured() -> None:
    """As on a GPU, which computes every slot; and without ceilings or for any loss, nothing is tried."""
    meter = Measured(lambda _: 4)
    on_gpu = replace(SPEED, ceilings=replace(CEILINGS, device="cuda", overlaps=True))
    found = chosen(meter, speed=on_gpu)
    assert [one.measured for one in found.tried] == [True, False, False]
    by_bytes = chosen(meter, speed=replace(SPEED, ceilings=None))
    any_loss = chosen(meter, planned=replace(PLANNED, accepted=float("inf")))
    assert {found.best.min_gain, by_bytes.best.min_gain, any_loss.best.min_gain} == {0.0}
    assert by_bytes.tried == any_loss.tried == meter.asked == []


@pytest.fixture(scope="module")
def model() -> Any:
    return tuned_model()


@pytest.fixture(scope="module")
def table(model: Any) -> Any:
    return routed_table(model, factors=True)


PLAN = tune_plan_of(goals={"fast": Goal("kl", 0.3)}, batch_sizes=[8], by="time", uniform=True)

GAINS = (0.02, 0.05, 0.2)


def tune(model: Any, table: Any, flops_per_s: float, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Tuned:
    """Tune on a machine of such a speed, with least gains that a random model tells apart."""
    monkeypatch.setattr(gains, "CANDIDATES", GAINS)
    monkeypatch.setattr(speed, "measure", lambda *_: replace(CEILINGS, flops_per_s=flops_per_s))
    return tune_plan(model, tiny_tokenizer(), table, PLAN, **more)


def test_a_tier_takes_a_least_gain_and_says_why(
    model: Any, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss and its pairs are those of decode steps under its settings; the ceilings are written down."""
    seen = meters_made(monkeypatch)
    tuned = tune(model, table, 1e9, monkeypatch)
    tier = tuned.table.tiers["fast"]
    found = tier.evidence["by_batch_size"]["8"]
    assert tier.min_gain in GAINS
    assert tuned.record["ceilings"] == tier.evidence["ceilings"]
    assert tier.evidence["ceilings"]["flops_per_s"] == 1e9
    config = replace(tuned.table.settings(RerouteConfig(tier="fast")), tier=None)
    assert config.min_gain == tier.min_gain
    policy = SideBySide(Sere(table.layers, config), 8)
    with apply(model, policy=policy, pad_token_id=-1) as handle:
        handle.counts_all = True
        scores = score_texts(model, seen[-1].texts["held-out"], batch_size=8)
        stats = handle.stats()
    assert found["kl"]["value"] == pytest.approx(
        sum(one.kl for one in scores) / sum(one.tokens for one in scores), rel=1e-3
    )
    pairs = sum(4 * one.rows * one.slots_computed for one in stats) / len(stats)
    assert found["pairs_after"] == pytest.approx(pairs, rel=0.2)
    assert found["pairs_after"] < 8 * 4
    weights = Speed.of(model, table, CEILINGS)
    off = weights.seconds(8, found["experts_before"], 8 * 4)
    on = weights.seconds(8, found["experts_after"], found["pairs_after"])
    assert off is not None
    assert on is not None
    assert found["predicted"]["ratio"] == pytest.approx(off / on, rel=1e-3)


def test_a_run_that_continues_takes_the_first_ceilings(
    model: Any, table: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The result is that of one run, though the machine is measured to be faster the second time."""
    whole = tune(model, table, 1e9, monkeypatch)
    monkeypatch.setattr(Breaking, "left", 3)
    monkeypatch.setattr(work, "Work", Breaking)
    with pytest.raises(KeyboardInterrupt):
        tune(model, table, 1e9, monkeypatch, work_dir=tmp_path / "work")
    assert json.loads((tmp_path / "work" / "tuning.json").read_text())["done"]["ceilings"]
    monkeypatch.setattr(Breaking, "left", 1000)
    again = tune(model, table, 1e15, monkeypatch, work_dir=tmp_path / "work")
    assert again.record["ceilings"] == whole.record["ceilings"]
    assert again.table.tiers["fast"].active_experts == whole.table.tiers["fast"].active_experts
    assert again.table.tiers["fast"].min_gain == whole.table.tiers["fast"].min_gain
