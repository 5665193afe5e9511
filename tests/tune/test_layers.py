"""Numbers of experts by layer, from measuring them to the tier: kept where they win, else not, and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sere.cli.tune_tables import render
from sere.config import RerouteConfig
from sere.table import SimilarityTable, Tier
from sere.table.tier_rows import tier_rows
from sere.tune.measure import Loss, Meter
from sere.tune.plan import Goal, Half
from sere.tune.plans import Plan
from sere.tune.run import Tuned, tune_plan
from sere.tune.simulate import simulate_layers
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tuning import routed_table, tune_plan_of, tuned_model

FIRST, SECOND = (4.0, 0.3), (0.3, 4.0)


@pytest.fixture(scope="module")
def model() -> Any:
    return tuned_model()


@pytest.fixture(scope="module")
def table(model: Any) -> SimilarityTable:
    return routed_table(model)


def losses(table: SimilarityTable, costs: dict[Half, tuple[float, float]]) -> Callable[..., Loss]:
    """Return losses that follow the simulated errors of the two layers, by what each costs in each half."""
    cells = {B: list(simulate_layers(table, B).values()) for B in (4, 8)}

    def loss(self: Meter, half: Half, rows: int, plan: Plan) -> Loss:
        by_layer = (plan, plan) if isinstance(plan, int) else plan
        chosen = [one[M] for one, M in zip(cells[rows], by_layer, strict=True)]
        square = sum(cost * one.error**2 for cost, one in zip(costs[half], chosen, strict=True))
        n = len(self.texts[half])
        kl = [square * (1 + 0.1 * (-1) ** i) for i in range(n)]
        after = sum(one.after for one in chosen) / 2
        return Loss(rows, [1] * n, kl, [one**0.5 for one in kl], [1] * n, chosen[0].before, after)

    return loss


def tuned_with(
    monkeypatch: pytest.MonkeyPatch, model: Any, table: SimilarityTable, costs: Any, **changes: Any
) -> tuple[Tuned, Tier]:
    monkeypatch.setattr(Meter, "loss", losses(table, costs))
    plan = tune_plan_of(**({"goals": {"fast": Goal("kl", 0.002)}} | changes))
    found = tune_plan(model, tiny_tokenizer(), table, plan)
    return found, found.table.tiers["fast"]


def test_a_costly_layer_gets_more_experts(
    model: Any, table: SimilarityTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tier's layers differ, read fewer experts at the accepted loss, and the evidence says the gain."""
    found, tier = tuned_with(monkeypatch, model, table, {"tuning": FIRST, "held-out": FIRST})
    costly, other = (dict(own["active_experts"]) for own in tier.layers.values())
    assert costly[1] == other[1] == 4
    assert costly[8] > other[8]
    settings = found.table.settings(RerouteConfig(tier="fast"))
    assert settings.for_layer(min(tier.layers)).active_experts == tuple(costly.items())
    compared = tier.evidence["per_layer"]
    assert compared["kept"]
    assert compared["ratio"]["high"] < 1
    assert list(compared["by_batch_size"]) == ["4", "8"]
    measured = tier.evidence["by_batch_size"]["8"]
    assert measured["by_layer"] == [costly[8], other[8]]
    assert measured["kl"]["value"] <= 0.002
    uniform, same = tuned_with(monkeypatch, model, table, {"tuning": FIRST, "held-out": FIRST}, uniform=True)
    assert measured["experts_after"] < same.evidence["by_batch_size"]["8"]["experts_after"]
    assert (same.evidence["per_layer"], dict(same.layers)) == (None, {})
    assert uniform.record["layers"] == {"sensitivities": None, "measured": None}
    shown = found.record["layers"]["sensitivities"]["layers"]
    assert shown[0]["sensitivity"] > shown[1]["sensitivity"] > 0
    assert (
        "by_layer"
        in found.record["layers"]["measured"]["8"][next(iter(found.record["layers"]["measured"]["8"]))]
    )
    json.dumps(found.record, allow_nan=False)
    text = render(found.record)
    value = compared["ratio"]
    assert (
        f"per layer: {value['value']:.2f} of uniform's KL at equal experts ({value['low']:.2f} to "
        f"{value['high']:.2f}), kept." in text
    )
    assert f"B=8: M by layer {costly[8]} {other[8]}." in text
    rows = list(tier_rows(tier, 16, 4))
    assert rows[1][2].endswith(f" ({other[8]} to {costly[8]})")


def test_what_does_not_hold_on_other_prompts_is_not_kept(
    model: Any, table: SimilarityTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the held-out half loses more, all layers read the same number, and the evidence says why."""
    found, tier = tuned_with(monkeypatch, model, table, {"tuning": FIRST, "held-out": SECOND})
    assert not tier.layers
    assert tier.evidence["per_layer"]["kept"] is False
    assert tier.evidence["per_layer"]["ratio"]["value"] > 1
    assert tier.evidence["by_batch_size"]["8"]["by_layer"] is None
    assert found.record["layers"]["measured"] is None
    text = render(found.record)
    assert "), not kept." in text
    assert "M by layer" not in text
