"""What a table alone says of re-routing: how well experts replace each other, and the expected loss."""

from __future__ import annotations

import pytest
import torch

from sere.config import RerouteConfig
from sere.reroute.limits import active_by_rows
from sere.similarity import LayerSimilarity
from sere.table import SimilarityTable, Tier
from sere.table.expected_loss import expected_error
from sere.table.neighbors import describe_regime, neighbors
from sere.table.regime import expected_losses, mean_of, why_no_loss
from tests.support.tables import identity, matrix, sample, table

E, K = 12, 3


def made(**changes: object) -> SimilarityTable:
    """Return a table of the default metric with a routing sample."""
    layers = {i: LayerSimilarity(matrix(i, E=E), matrix(i + 1, E=E)) for i in (1, 3)}
    values = {"layers": layers, "identity": identity(E=E, K=K), "metric": "projection"}
    return table(**(values | {"routing": sample(E=E, K=K, lengths=(2,) * 70)} | changes))


def best_is(value: float) -> SimilarityTable:
    """Return a table whose experts' best other experts all have this similarity."""
    similarity = torch.full((5, 5), value / 2).fill_diagonal_(1)
    similarity[torch.arange(5), torch.arange(5).roll(1)] = value
    layers = dict.fromkeys((1, 3), LayerSimilarity(similarity, torch.ones(5, 5)))
    return table(layers=layers, metric="projection")


def regime(made: SimilarityTable) -> str:
    """Return the sentence on a table."""
    return describe_regime(made.layers, made.metric)


def test_neighbors_are_the_best_other_experts_that_are_known() -> None:
    """Mean and quantiles over the experts of which a similarity is known, of several layers together."""
    similarity = torch.zeros(5, 5).fill_diagonal_(1)
    similarity[0, 1], similarity[1, 2], similarity[2, 0], similarity[3, 0] = 0.4, 0.3, 0.2, 0.1
    similarity[4, :4] = torch.nan
    found = neighbors([similarity])
    assert found is not None
    assert (found.mean, found.p50) == pytest.approx((0.25, 0.25))
    assert (found.p10, found.p90) == pytest.approx((0.13, 0.37))
    assert neighbors([similarity, torch.full((2, 2), torch.nan)]) == found
    assert neighbors([torch.full((2, 2), torch.nan)]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.09, "experts are close to orthogonal: factors mostly drop a slot, choose more experts"),
        (0.1, "experts resemble each other a little: replacing keeps some of a slot, the rest is lost"),
        (0.5, "experts resemble each other: replacing keeps most of a slot, fewer experts may do"),
    ],
)
def test_the_regime_is_said_in_a_sentence(value: float, text: str) -> None:
    """Below a tenth of the output explained, replacing is dropping; from half on, most stays."""
    assert regime(best_is(value)) == text


def test_a_metric_that_only_ranks_has_no_regime() -> None:
    """Its similarities are no shares of an output."""
    assert "the metric 'cka' ranks experts and does not say how much" in regime(table())
    assert why_no_loss(table()) == "the metric 'cka' has no factors; calibrate with projection"
    assert why_no_loss(best_is(0.3)) == (
        "the table has no routing sample, as older ones and those of looping models; calibrate again"
    )
    assert why_no_loss(made()) is None


def test_the_loss_is_that_of_the_default_m_by_rows() -> None:
    """Each layer and batch size at the M that the layer would read."""
    one = made()
    found = expected_losses(one, RerouteConfig(), (4, 16))
    most = active_by_rows("auto", E, K)
    assert one.routing is not None
    for index in (1, 3):
        cells = expected_error(one.routing, one.layers[index], index, [most[3], most[15]], (4, 16))
        assert found[index] == {4: cells[4, most[3]], 16: cells[16, most[15]]}
    assert mean_of([found[1][4], found[3][4]]).error == (found[1][4].error + found[3][4].error) / 2


def test_the_loss_follows_the_tables_tier() -> None:
    """With its layers, S and ρ; a step of more rows than limits are given for has the last one."""
    tiers = {"balanced": Tier("balanced", 4, {3: E}, threshold=0.9)}
    one = made(tiers=tiers)
    found = expected_losses(one, RerouteConfig(), (64, 300))
    assert found[3][64].error == 0
    assert one.routing is not None
    expected = expected_error(one.routing, one.layers[1], 1, [4], (64, 300), threshold=0.9)
    assert found[1] == {64: expected[64, 4], 300: expected[300, 4]}
