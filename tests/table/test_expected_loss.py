"""The expected loss is what plain loops over re-routed steps add up to."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import InputError
from sere.reroute import TokenBatch, prepare_layer
from sere.reroute.stats import COUNTERS
from sere.similarity import LayerSimilarity
from sere.table import RoutingSample
from sere.table.expected_loss import Expected, draw_steps, expected_error
from tests.support.tables import matrix, sample

E = 12


def layer(*, known: bool = True) -> LayerSimilarity:
    """Return a directed layer with factors; some similarities, and one expert's, may not be known."""
    similarity = torch.rand(E, E, generator=torch.Generator().manual_seed(3))
    if not known:
        similarity[2] = torch.nan
        similarity[:, 5] = torch.nan
    return LayerSimilarity(similarity.fill_diagonal_(1), matrix(4, E=E))


def routing(**changes: Any) -> RoutingSample:
    """Return a sample of 40 texts; two slots count for nothing."""
    made = sample(E=E, K=4, lengths=tuple(range(1, 41)), **changes)
    made.ids[1][3, 1] = -1
    made.weights[1][5, 0] = 0
    return made


def by_loops(
    one: RoutingSample,
    similar: LayerSimilarity,
    M: int,
    B: int,
    *,
    S: int,
    rho: float,
    cap: bool,
    gain: float = 0.0,
) -> Expected:
    """Re-route each step by the reference and add up the loss slot by slot."""
    config = RerouteConfig(
        active_experts=M, select_top_k=S, threshold=rho, cap=cap, min_gain=gain, backend="reference"
    )
    prepared = prepare_layer(similar, config, scale=similar.scale if gain else None)
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64)
    lost = total = 0.0
    before = after = pairs = 0
    steps = draw_steps(one.starts, B)
    for rows in steps:
        ids, weights = one.ids[1][rows].long(), one.weights[1][rows].float()
        counters.zero_()
        routed = prepared.route(TokenBatch(ids, weights), counters)
        counts = dict(zip(COUNTERS, counters.tolist(), strict=True))
        before, after = before + counts["distinct_before"], after + counts["distinct_after"]
        pairs += counts["slots_computed"]
        slots = (ids, routed.ids, routed.weights, weights.double())
        for e, p, v, w in zip(*(one.flatten() for one in slots), strict=True):
            if e >= 0 and w > 0:
                energy = float(w) ** 2 * float(one.energy[1][e])
                total += energy
                share = float(similar.similarity[e, p]) if v > 0 else 0
                lost += energy * (1 - share) if e != p else 0
    return Expected(lost / total, before / len(steps), after / len(steps), pairs / len(steps))


@pytest.mark.parametrize("B", [3, 50])
@pytest.mark.parametrize("M", [1, 5])
@pytest.mark.parametrize(
    "settings",
    [
        {"S": 1, "rho": 0.0, "cap": False},
        {"S": 2, "rho": 0.0, "cap": False},
        {"S": 1, "rho": 0.9, "cap": False},
        {"S": 1, "rho": 0.0, "cap": True},
        {"S": 1, "rho": 0.0, "cap": False, "gain": 0.1},
    ],
    ids=["S1", "S2", "rho", "cap", "gain"],
)
@pytest.mark.parametrize("known", [True, False], ids=["all known", "some not known"])
def test_it_is_what_the_reference_adds_up_to(B: int, M: int, settings: Any, known: bool) -> None:
    """For steps smaller and larger than the number of texts, with and without what is not known."""
    similar, one = layer(known=known), routing()
    (found,) = expected_error(
        one, similar, 1, [M], [B], select_top_k=settings["S"], threshold=settings["rho"], cap=settings["cap"],
        min_gain=settings.get("gain", 0.0),
    ).values()  # fmt: skip
    assert found == pytest.approx(by_loops(one, similar, M, B, **settings), rel=1e-6)


def test_a_grid_is_each_of_its_cells() -> None:
    """Several M and B at once, or different M by B, change nothing."""
    similar, one = layer(), routing()
    whole = expected_error(one, similar, 3, [2, 6, 9], [2, 8])
    assert list(whole) == [(2, 2), (2, 6), (2, 9), (8, 2), (8, 6), (8, 9)]
    by_size = expected_error(one, similar, 3, {2: [6], 8: [9, 2]}, [2, 8])
    assert by_size == {cell: whole[cell] for cell in ((2, 6), (8, 9), (8, 2))}


def test_all_experts_lose_nothing_and_fewer_lose_more() -> None:
    """With M = E every expert is read; the error grows as M shrinks."""
    found = expected_error(routing(), layer(), 1, range(1, E + 1), [16])
    errors = [found[16, M].error for M in range(1, E + 1)]
    assert errors[-1] == 0
    assert found[16, E].before == found[16, E].after
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0


def test_a_step_has_one_token_of_each_text() -> None:
    """As long as there are enough texts; beyond that, of each as often as of any other, give or take one."""
    starts = routing().starts
    text = torch.bucketize(draw_steps(starts, 40), starts[1:].long(), right=True)
    assert text.sort(dim=1).values.tolist() == [list(range(40))] * len(text)
    many = torch.bucketize(draw_steps(starts, 100), starts[1:].long(), right=True)
    counts = torch.stack([row.bincount(minlength=40) for row in many])
    assert (counts.min(), counts.max()) == (2, 3)
    assert not torch.equal(draw_steps(starts, 40, seed=1), draw_steps(starts, 40))


def test_another_layer_or_model_is_refused() -> None:
    """The text names what is there."""
    with pytest.raises(InputError, match=re.escape("index: expected a layer of the sample [1, 3], got 2")):
        expected_error(routing(), layer(), 2, [3], [4])
    with pytest.raises(InputError, match="expected E = 12 experts as in the sample, got 5"):
        expected_error(routing(), LayerSimilarity(matrix(1)), 1, [3], [4])
