"""One batch worked by hand, so that the reference itself is held to docs/method.md section 4."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.batches import BACKENDS, Case

pytestmark = pytest.mark.usefixtures("shim_backend")

# Experts 0..5. Rows keep their heaviest slot at S=1: P = {0, 1}. Secondary: 2, 3, 4.
IDS = [[2, 0, 3], [1, 2, 4], [0, 3, 4]]
WEIGHTS = [[0.25, 0.5, 0.125], [0.75, 0.125, 0.0625], [0.5, 0.25, 0.125]]
SIMILARITY = [
    [1.0, 0.9, 0.9, 0.9, 0.9, 0.9],
    [0.9, 1.0, 0.9, 0.9, 0.9, 0.9],
    [0.3, 0.6, 1.0, 0.9, 0.9, 0.9],  # 2 resembles 3 most, but of P it resembles 1
    [0.5, 0.5, 0.9, 1.0, 0.9, 0.9],  # 3: a tie between 0 and 1
    [0.2, 0.1, 0.9, 0.9, 1.0, 0.9],  # 4 resembles neither: critical from 0.3 on
    [0.9, 0.9, 0.9, 0.9, 0.9, 1.0],
]


def example(**options: Any) -> Case:
    return Case(
        torch.tensor(IDS), torch.tensor(WEIGHTS), torch.tensor(SIMILARITY), {"select_top_k": 1} | options
    )


EXPECTED = [
    pytest.param({}, [[1, 0, 0], [1, 1, 0], [0, 0, 0]], id="every secondary expert goes to its best of P"),
    pytest.param(
        {"threshold": 0.3}, [[1, 0, 0], [1, 1, 4], [0, 0, 4]], id="expert 4 resembles none enough: it stays"
    ),
    pytest.param({"threshold": 0.5}, [[1, 0, 0], [1, 1, 4], [0, 0, 4]], id="at the threshold is enough"),
    pytest.param({"threshold": 0.55}, [[1, 0, 3], [1, 1, 4], [0, 3, 4]], id="just below is not"),
    pytest.param(
        {"threshold": 0.3, "targets": "active"},
        [[4, 0, 4], [1, 4, 4], [0, 4, 4]],
        id="the critical expert 4 is read anyway and resembles 2 and 3 more",
    ),
    pytest.param({"keep": (2,)}, [[2, 0, 2], [1, 2, 2], [0, 2, 2]], id="a kept expert is primary"),
    pytest.param(
        {"keep": (5,)}, [[1, 0, 0], [1, 1, 0], [0, 0, 0]], id="a kept expert that no row asks for is not"
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("options", "expected"), EXPECTED)
def test_ids(backend: str, options: dict[str, Any], expected: list[list[int]]) -> None:
    """The ids are those worked out by hand."""
    routing, _ = example(**options).run(backend)
    assert routing.ids.tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_masses_let_the_lower_expert_join(backend: str) -> None:
    """Experts 2 and 3 have a mass of 17/4096 each beside P: at M = 3 expert 2 joins, at M = 4 both."""
    assert example(active_experts=3).run(backend)[0].ids.tolist() == [[2, 0, 2], [1, 2, 2], [0, 2, 2]]
    assert example(active_experts=4).run(backend)[0].ids.tolist() == [[2, 0, 3], [1, 2, 2], [0, 3, 2]]
    assert example(active_experts=5).run(backend)[0].ids.tolist() == IDS


CAPPED = [
    pytest.param({"active_experts": 1}, [[1, 1, 1], [1, 1, 1], [1, 1, 1]], id="1 has more mass than 0"),
    pytest.param(
        {"active_experts": 1, "threshold": 0.3}, [[1, 1, 1], [1, 1, 4], [1, 1, 4]], id="4 is critical even so"
    ),
    pytest.param({"active_experts": 2}, [[1, 0, 0], [1, 1, 0], [0, 0, 0]], id="room for both"),
    pytest.param(
        {"active_experts": 1, "keep": (0,)}, [[0, 0, 0], [0, 0, 0], [0, 0, 0]], id="a kept expert goes first"
    ),
    pytest.param(
        {"active_experts": 1, "row_budgets": [3, -2, -2]},
        [[2, 0, 3], [1, 2, 2], [0, 3, 2]],
        id="a protected row has its experts, the others together have one",
    ),
    pytest.param({"active_experts": 3}, [[2, 0, 2], [1, 2, 2], [0, 2, 2]], id="filled up as without a cap"),
    pytest.param(
        {"active_experts": 1, "row_budgets": [-2, 3, -2]},
        [[2, 0, 2], [1, 2, 4], [0, 2, 4]],
        id="0 is their one, whatever the protected row has",
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("options", "expected"), CAPPED)
def test_a_cap_bounds_even_the_heaviest_slots(
    backend: str, options: dict[str, Any], expected: list[list[int]]
) -> None:
    """Of the experts in kept slots only the heaviest M stay; the others are secondary like any."""
    routing, _ = example(cap=True, **options).run(backend)
    assert routing.ids.tolist() == expected


BY_ROWS = [
    pytest.param(None, [[2, 0, 3], [1, 2, 2], [0, 3, 2]], id="three rows: four experts"),
    pytest.param([-2, -1, -2], [[2, 0, 3], [0, 0, 0], [0, 3, 2]], id="one is padding: three"),
    pytest.param([3, -2, -2], [[2, 0, 3], [1, 2, 2], [0, 3, 2]], id="one is protected: three, without 4"),
    pytest.param([0, 0, -2], [[2, 0, 3], [1, 2, 2], [0, 3, 2]], id="rows with a budget of 0 count"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("row_budgets", "expected"), BY_ROWS)
def test_the_rows_that_may_change_decide_how_many_experts(
    backend: str, row_budgets: list[int] | None, expected: list[list[int]]
) -> None:
    """With points M is 2 for one row, 3 for two and 4 for three; padding and protected rows do not count."""
    points = ((1, 2), (3, 4))
    routing, _ = example(active_experts=points, row_budgets=row_budgets).run(backend)
    assert routing.ids.tolist() == expected


BESIDE = [
    pytest.param([-2, 3, -2], 1, [[2, 0, 2], [1, 2, 4], [0, 2, 4]], id="0, beside it 1, 2 and 4"),
    pytest.param([-2, 3, -2], 2, IDS, id="3 has more mass than 2 in the open rows, not in all"),
    pytest.param([-2, -2, 3], 2, [[3, 0, 3], [1, 3, 4], [0, 3, 4]], id="0 and 1, beside them 3 and 4"),
    pytest.param([-2, -2, 3], 3, IDS, id="2 is the third: the protected row's own are none of these"),
    pytest.param([3, 3, 3], 1, IDS, id="no open row"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("row_budgets", "most", "expected"), BESIDE)
def test_protected_rows_take_none_of_m(
    backend: str, row_budgets: list[int], most: int, expected: list[list[int]]
) -> None:
    """P has the M experts that it would have without them, and theirs: a prompt takes nothing from others."""
    routing, _ = example(active_experts=most, row_budgets=row_budgets).run(backend)
    assert routing.ids.tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_budgets(backend: str) -> None:
    """A protected row keeps its experts and others use them; a negative budget makes a row padding."""
    assert example(row_budgets=[3, 1, 1]).run(backend)[0].ids.tolist() == [[2, 0, 3], [1, 2, 2], [0, 3, 2]]
    routing, counts = example(row_budgets=[1, -1, 1]).run(backend)
    assert routing.ids.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert routing.weights.tolist() == [WEIGHTS[0], [0.0, 0.0, 0.0], WEIGHTS[2]]
    assert counts == {
        "steps": 1, "rows": 2, "distinct_before": 4, "distinct_after": 1, "slots": 6,
        "slots_rerouted": 4, "slots_computed": 6, "critical": 0,
    }  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_merge_modes(backend: str) -> None:
    """Equal ids are summed into their lowest slot; the freed slots get what the mode says."""
    same, _ = example(merge="same").run(backend)
    assert same.ids.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert same.weights.tolist() == [[0.25, 0.625, 0.0], [0.875, 0.0, 0.0625], [0.875, 0.0, 0.0]]
    distinct, _ = example(merge="distinct").run(backend)
    assert distinct.ids.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]], "only two experts are active"
    sentinel, _ = example(merge="sentinel", sentinel=-1).run(backend)
    assert sentinel.ids.tolist() == [[1, 0, -1], [1, -1, 0], [0, -1, -1]]
    assert torch.equal(sentinel.weights, same.weights)


@pytest.mark.parametrize("backend", BACKENDS)
def test_distinct_takes_active_experts_lowest_first(backend: str) -> None:
    """With expert 4 critical, freed slots get 0, 1 or 4: the lowest that the row does not have."""
    routing, _ = example(threshold=0.3, merge="distinct").run(backend)
    assert routing.ids.tolist() == [[1, 0, 4], [1, 0, 4], [0, 1, 4]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_multiplies_the_weight_of_moved_slots_only(backend: str) -> None:
    """A slot moved from e to p is multiplied by scale[e, p]; others keep their bits."""
    scale = torch.full((6, 6), 9.0)
    scale[2, 1], scale[3, 0], scale[4, 0] = 0.5, 2.0, 4.0
    routing, _ = example(scale=scale).run(backend)
    assert routing.weights.tolist() == [[0.125, 0.5, 0.25], [0.75, 0.0625, 0.25], [0.5, 0.5, 0.5]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strange_slots_pass_through(backend: str) -> None:
    """Sentinels, fused shared experts and zero experts are untouched, do not vote and do not count."""
    case = example()
    case.ids[0, 1], case.ids[1, 0] = -1, 6
    case.weights[2, 0] = 0.0
    routing, counts = case.run(backend)
    # Row 0 votes for 2, row 1 for 2, row 2 for 3; expert 4 resembles 2 and 3 alike: the lower id.
    assert routing.ids.tolist() == [[2, -1, 3], [6, 2, 2], [0, 3, 2]]
    assert counts == {
        "steps": 1, "rows": 3, "distinct_before": 3, "distinct_after": 2, "slots": 6,
        "slots_rerouted": 2, "slots_computed": 6, "critical": 0,
    }  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_rows(backend: str) -> None:
    """Rows from N on become the lowest expert of P with weight 0, or the sentinel; N = 0 changes nothing."""
    routing, counts = example(num_tokens=1, threshold=0.4).run(backend)
    assert routing.ids.tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]], "3 goes to 0; 2 stays critical"
    assert routing.weights.tolist() == [WEIGHTS[0], [0.0] * 3, [0.0] * 3]
    assert counts == {
        "steps": 1, "rows": 1, "distinct_before": 3, "distinct_after": 2, "slots": 3,
        "slots_rerouted": 1, "slots_computed": 3, "critical": 1,
    }  # fmt: skip
    sentinel, _ = example(num_tokens=1, merge="sentinel", sentinel=-1).run(backend)
    assert sentinel.ids.tolist()[1:] == [[-1] * 3] * 2
    nothing, counts = example(num_tokens=0).run(backend)
    assert nothing.ids.tolist() == IDS
    assert nothing.weights.tolist() == WEIGHTS
    assert not any(counts.values())
