"""Tiers that a table estimates: the fewest experts whose expected error is within the accepted one."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch

import sere
from sere.config import RerouteConfig
from sere.reroute.limits import active_by_rows
from sere.similarity import LayerSimilarity
from sere.table import OWN_TEXTS, RoutingSample, SimilarityTable
from sere.table.estimated_tiers import ACCEPTED, estimated_tiers
from sere.table.expected_loss import expected_error
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tables import identity, matrix, sample, table
from tests.support.tiny import tiny_model

E, K = 12, 3


def made(**changes: Any) -> SimilarityTable:
    """Return a table of two layers of 12 experts, with factors and a routing sample."""
    layers = {i: LayerSimilarity(matrix(i, E=E).fill_diagonal_(1), torch.ones(E, E)) for i in (1, 3)}
    values: dict[str, Any] = {
        "layers": layers, "identity": identity(E=E, K=K), "metric": "projection",
        "routing": sample(E=E, K=K, lengths=(2,) * 70),
    }  # fmt: skip
    return table(**(values | changes))


def errors(found: SimilarityTable, rows: int) -> list[float]:
    """Return the mean expected error of the layers for M = 1, 2, ... E."""
    assert found.routing is not None
    cells = [expected_error(found.routing, found.layers[i], i, range(1, E + 1), [rows]) for i in (1, 3)]
    return [fmean(one[rows, M].error for one in cells) for M in range(1, E + 1)]


@pytest.mark.parametrize("name", list(ACCEPTED))
@pytest.mark.parametrize("rows", [2, 4, 16, 128])
def test_m_is_the_smallest_that_is_within_the_accepted_error(name: str, rows: int) -> None:
    """At each number of rows, unless fewer rows need more."""
    found = made()
    tier = estimated_tiers(found)[name]
    points = dict(tier.active_experts)  # type: ignore[arg-type]
    by_error = errors(found, rows)
    M = points[rows]
    assert by_error[M - 1] <= ACCEPTED[name]
    before = max(value for at, value in points.items() if at < rows)
    assert before == M or by_error[M - 2] > ACCEPTED[name]
    cell = tier.evidence["by_batch_size"][str(rows)]
    assert cell["error"] == pytest.approx(by_error[M - 1], abs=1e-4)


def test_less_is_accepted_on_texts_that_the_model_wrote() -> None:
    """They are more alike than others, so the same error on them means more on other texts."""
    own = made(provenance={"calibration": {"texts": OWN_TEXTS}})
    by_error, others = errors(own, 2), estimated_tiers(made())
    more = 0
    for name, tier in estimated_tiers(own).items():
        points, of_given = (dict(one.active_experts) for one in (tier, others[name]))  # type: ignore[arg-type]
        M = points[2]
        assert by_error[M - 1] <= 0.7 * ACCEPTED[name]
        assert M == K or by_error[M - 2] > 0.7 * ACCEPTED[name]
        assert all(points[B] >= of_given[B] for B in points)
        more += sum(points.values()) - sum(of_given.values())
        assert tier.evidence["goal"]["value"] == pytest.approx(0.7 * ACCEPTED[name])
        assert "wrote itself" in tier.evidence["estimated_from"]
    assert more > 0


def test_one_row_reads_its_own_experts_and_m_never_falls() -> None:
    """K for one row; a stricter tier reads at least as many experts everywhere."""
    tiers = estimated_tiers(made())
    values = {name: active_by_rows(tier.active_experts, E, K) for name, tier in tiers.items()}
    assert {one[0] for one in values.values()} == {K}
    assert all(one == sorted(one) for one in values.values())
    assert all(
        a >= b >= c for a, b, c in zip(*(values[n] for n in ("safe", "balanced", "fast")), strict=True)
    )


def test_layers_of_another_shape_have_their_own_m() -> None:
    """Each is estimated from its own routing, with its own K for one row."""
    small = RoutingSample(
        ids={1: sample(E=E, K=K, lengths=(2,) * 70).ids[1], 3: sample(E=6, K=2, lengths=(2,) * 70).ids[3]},
        weights={
            1: sample(E=E, K=K, lengths=(2,) * 70).weights[1],
            3: sample(E=6, K=2, lengths=(2,) * 70).weights[3],
        },
        starts=sample(lengths=(2,) * 70).starts,
        energy={1: torch.ones(E), 3: torch.ones(6)},
    )
    layers = {
        i: LayerSimilarity(matrix(i, E=size).fill_diagonal_(1), torch.ones(size, size))
        for i, size in ((1, E), (3, 6))
    }
    own = identity(experts={1: E, 3: 6}, slots={1: K, 3: 2})
    tier = estimated_tiers(made(layers=layers, identity=own, routing=small))["balanced"]
    assert list(tier.layers) == [3]
    assert active_by_rows(tier.active_experts, E)[0] == K
    assert active_by_rows(tier.for_layer(3).active_experts, 6)[0] == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"routing": None},
        {"layers": {i: LayerSimilarity(matrix(i, E=E).fill_diagonal_(1)) for i in (1, 3)}},
    ],
    ids=["no sample", "no factors"],
)
def test_a_table_that_cannot_estimate_has_none(changes: Any) -> None:
    """Without a routing sample or factors the formula of ``"auto"`` stays."""
    assert estimated_tiers(made(**changes)) == {}


def test_calibration_stores_them_and_the_defaults_take_them() -> None:
    """``"auto"`` is the estimated tier balanced, with its τ; the published preset has neither."""
    model = tiny_model("qwen3_moe")
    texts = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 4
    options: dict[str, Any] = {"max_tokens": 256, "seq_len": 16, "progress": False}
    found = sere.calibrate(model, tiny_tokenizer(), texts, **options)
    assert dict(found.tiers) == estimated_tiers(found) != {}
    assert {tier.min_gain for tier in found.tiers.values()} == {0.01}
    assert (found.settings(RerouteConfig()).tier, found.settings(RerouteConfig()).min_gain) == (
        "balanced",
        0.01,
    )
    published = found.settings(RerouteConfig.paper(2, 0.0))
    assert (published.tier, published.min_gain) == (None, 0)
