"""What weights that no router should give do: the table of docs/method.md, line by line, on every backend."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.batches import BACKENDS, Case, bits

pytestmark = pytest.mark.usefixtures("shim_backend")
backends = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])

NAN, INF = math.nan, math.inf
# Nobody resembles anybody more than another: a secondary expert goes to the lowest primary one.
ALIKE = torch.full((6, 6), 0.5).fill_diagonal_(1.0)


def case(ids: list[list[int]], weights: Tensor | list[list[float]], **options: Any) -> Case:
    """A call at S = 1 and ρ = 0."""
    return Case(
        torch.tensor(ids, dtype=torch.int32), torch.as_tensor(weights), ALIKE, {"select_top_k": 1} | options
    )


@backends
@dtypes
def test_a_slot_of_nan_passes_through_and_counts_for_nothing(backend: str, dtype: torch.dtype) -> None:
    """Not the heaviest, not counted, not replaced; the row's other slots go on as if it were not there."""
    weights = torch.tensor([[NAN, 0.5, 0.25], [0.125, NAN, 0.25], [NAN, NAN, NAN]]).to(dtype)
    call = case([[5, 1, 2], [3, 4, 0], [5, 4, 3]], weights)
    routing, counts = call.run(backend)
    # P = {0, 1}: what the rows' heaviest slots with a number hold.
    assert routing.ids.tolist() == [[5, 1, 0], [0, 4, 0], [5, 4, 3]]
    assert torch.equal(bits(routing.weights), bits(weights))
    assert counts == {
        "steps": 1, "rows": 3, "distinct_before": 4, "distinct_after": 2, "slots": 4,
        "slots_rerouted": 2, "slots_computed": 4, "critical": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"merge": "same", "scale": ALIKE}, {"row_budgets": torch.tensor([0, 0])}],
    ids=["plain", "merged and scaled", "nothing is primary"],
)
@backends
@dtypes
def test_nan_keeps_its_bits(backend: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Sign and payload of a NaN that passes through stay, also where nothing is primary or all is merged."""
    one = int(bits(torch.tensor([NAN], dtype=dtype)))
    weights = torch.full((2, 3), 0.5, dtype=dtype)
    bits(weights)[0, 1], bits(weights)[1, 2] = one | 1, one | torch.iinfo(bits(weights).dtype).min
    routing, _ = case([[0, 1, 2], [3, 4, 5]], weights, **options).run(backend)
    kept = bits(routing.weights)
    assert [kept[0, 1], kept[1, 2]] == [bits(weights)[0, 1], bits(weights)[1, 2]]


@backends
def test_nan_is_not_merged(backend: str) -> None:
    """Slots of NaN take no part in a sum; their experts count as ones that the row has already."""
    call = case([[1, 1, 2, 0], [0, 3, 4, 5]], [[0.5, NAN, 0.25, NAN], [0.5, 0.25, 0.125, 0.0625]])
    same, _ = call.run(backend, merge="same")
    assert same.ids.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(
        same.weights,
        torch.tensor([[0.5, NAN, 0.25, NAN], [0.9375, 0, 0, 0]]),
        rtol=0,
        atol=0,
        equal_nan=True,
    )
    # Row 0 holds 1 twice, once as NaN, and 0 twice, once as NaN: nothing is freed there.
    distinct, _ = call.run(backend, merge="distinct")
    assert distinct.ids.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]
    freed = case([[2, 2, 0], [0, 1, 3]], [[0.5, 0.25, NAN], [0.5, 0.25, 0.125]], row_budgets=[3, 3])
    assert freed.run(backend, merge="distinct")[0].ids.tolist() == [[2, 1, 0], [0, 1, 3]]


@backends
def test_nan_in_a_padding_row_becomes_0(backend: str) -> None:
    """A padding row is nobody's: whatever weights it holds, they go."""
    call = case([[0, 1], [2, 3]], [[0.5, 0.25], [NAN, INF]], num_tokens=1)
    routing, _ = call.run(backend)
    assert routing.ids.tolist() == [[0, 0], [0, 0]]
    assert routing.weights.tolist() == [[0.5, 0.25], [0, 0]]


@backends
@dtypes
def test_infinite_weights_are_the_heaviest_and_the_lightest(backend: str, dtype: torch.dtype) -> None:
    """Positive infinity beats the largest number, negative infinity loses to the least; equals are a tie."""
    most = torch.finfo(dtype).max
    weights = torch.tensor([[most, INF, 1.0], [-INF, -most, -INF], [INF, INF, 1.0]], dtype=torch.float64).to(
        dtype
    )
    routing, _ = case([[5, 1, 5], [5, 2, 5], [3, 5, 5]], weights).run(backend)
    # P = {1, 2, 3}: row 2's tie goes to the lower slot.
    assert routing.ids.tolist() == [[1, 1, 1], [1, 2, 1], [3, 1, 1]]
    assert torch.equal(routing.weights, weights)


@backends
def test_negative_weights_are_slots_like_any_other(backend: str) -> None:
    """Below every positive weight, and of two the one nearer to 0 is the heavier."""
    routing, counts = case([[5, 1], [2, 5]], [[-0.5, -0.25], [0.125, -2.0]]).run(backend)
    assert routing.ids.tolist() == [[1, 1], [2, 1]]
    assert counts == {
        "steps": 1, "rows": 2, "distinct_before": 3, "distinct_after": 2, "slots": 4,
        "slots_rerouted": 2, "slots_computed": 4, "critical": 0,
    }  # fmt: skip


@backends
@dtypes
@pytest.mark.parametrize("sign", [1, -1])
def test_the_smallest_subnormal_number_counts_and_zeros_do_not(
    backend: str, dtype: torch.dtype, sign: int
) -> None:
    """Nothing is flushed to zero; a zero of either sign is no slot."""
    least = sign * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    weights = torch.tensor([[least, 0.0], [-0.0, least]], dtype=torch.float64).to(dtype)
    routing, counts = case([[1, 4], [5, 2]], weights).run(backend)
    assert routing.ids.tolist() == [[1, 4], [5, 2]]
    assert torch.equal(bits(routing.weights), bits(weights))
    assert counts == {
        "steps": 1, "rows": 2, "distinct_before": 2, "distinct_after": 2, "slots": 2,
        "slots_rerouted": 0, "slots_computed": 2, "critical": 0,
    }  # fmt: skip


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_masses_are_clamped_slot_by_slot(backend: str, dtype: torch.dtype) -> None:
    """A slot's mass is at most 16: three slots of 300 outweigh two of the largest number."""
    most = torch.finfo(dtype).max
    weights = torch.tensor(
        [[INF, most, 300.0], [INF, most, 300.0], [INF, 1.0, 300.0]], dtype=torch.float64
    ).to(dtype)
    routing, _ = case([[0, 1, 4], [0, 1, 4], [0, 1, 4]], weights, active_experts=2).run(backend)
    assert routing.ids.tolist() == [[0, 0, 4]] * 3


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("weight", [INF, 1e30, 300.0, 2.0])
@pytest.mark.parametrize("ids", [[0, 4, 1], [0, 1, 4]])
def test_masses_at_the_bound_are_a_tie(
    backend: str, dtype: torch.dtype, weight: float, ids: list[int]
) -> None:
    """However far beyond it two weights are, the lower id joins."""
    most = torch.finfo(dtype).max
    tied = torch.tensor([[INF, most, weight]], dtype=torch.float64).to(dtype)
    routing, _ = case([ids], tied, active_experts=2).run(backend)
    assert set(routing.ids[0].tolist()) == {0, 1}


@backends
def test_a_negative_weight_has_the_mass_of_its_size(backend: str) -> None:
    """It is below every positive one in its row, but what its loss would cost depends on its size."""
    weights = [[1.0, -0.5, 0.25], [1.0, -0.5, 0.25]]
    routing, _ = case([[0, 3, 2], [0, 3, 2]], weights, active_experts=2).run(backend)
    assert routing.ids.tolist() == [[0, 3, 0]] * 2
    assert case([[0, 3, 2]], [[-1.0, -0.5, -0.25]]).run(backend)[0].ids.tolist() == [[2, 2, 2]]


@backends
def test_masses_add_up_in_units(backend: str) -> None:
    """A sum is one of integers: twice a weight of one unit is more than one of 1.4 units, which is one."""
    weights = [[1.0, 2.0**-8.5, 2.0**-8.375], [1.0, 2.0**-8.5, 2.0**-10]]
    routing, _ = case([[0, 3, 2], [0, 3, 2]], weights, active_experts=2).run(backend)
    assert routing.ids.tolist() == [[0, 3, 0]] * 2


@backends
@pytest.mark.parametrize("level", [1.0, 0.7], ids=["as they are", "times a sensitivity that rounds"])
@pytest.mark.parametrize("rows", [1, 512], ids=["2^38 units", "2^47 units"])
def test_one_unit_more_is_more(backend: str, rows: int, level: float) -> None:
    """A mass times its sensitivity is rounded to float64, but a large one still shows a single unit."""
    weights = torch.tensor([[INF, 2.0, 2.0]], dtype=torch.float64).repeat(rows, 1)
    weights[0, 1] -= 2.0**-39
    call = case([[0, 2, 3]] * rows, weights, active_experts=2, sensitivity=torch.full((6,), level))
    assert set(call.run(backend)[0].ids.flatten().tolist()) == {0, 3}


@backends
@pytest.mark.parametrize(
    ("heavier", "lighter", "joins"),
    [(1.15625, 1.140625, [0, 0, 2]), (1.171875, 1.15625, [0, 3, 0])],
    ids=["7.15 and 6.77 units are both 7: the lower id", "7.54 units are 8, 7.15 are 7"],
)
def test_masses_are_rounded(backend: str, heavier: float, lighter: float, joins: list[int]) -> None:
    """Each power is rounded to the nearest unit before it is added."""
    call = case([[0, 3, 2]], [[1.0, heavier * 2**-8, lighter * 2**-8]], active_experts=2)
    assert call.run(backend)[0].ids.tolist() == [joins]


@backends
@dtypes
def test_what_a_dtype_cannot_hold_becomes_infinite(backend: str, dtype: torch.dtype) -> None:
    """A product or sum beyond the dtype's range is infinite, with its sign."""
    most = torch.finfo(dtype).max
    scale = torch.full((6, 6), 4.0)
    weights = torch.tensor([[most, most / 2, -most]], dtype=torch.float64).to(dtype)
    scaled, _ = case([[0, 1, 2]], weights, scale=scale).run(backend)
    assert scaled.weights.double().tolist() == [[most, INF, -INF]]
    summed, _ = case([[0, 1, 1]], weights.abs(), merge="same").run(backend)
    assert summed.weights.double().tolist() == [[INF, 0, 0]]


@backends
@dtypes
def test_sums_and_products_without_a_value_are_nan(backend: str, dtype: torch.dtype) -> None:
    """An infinite weight times a factor of 0, and infinities of both signs in one sum."""
    weights = torch.tensor([[INF, INF, 1.0], [1.0, -INF, INF]]).to(dtype)
    scaled, _ = case([[0, 1, 2], [0, 1, 0]], weights, scale=torch.zeros(6, 6)).run(backend)
    assert scaled.weights.isnan().tolist() == [[False, True, False], [False, True, False]]
    assert scaled.weights[0, [0, 2]].tolist() == [INF, 0]
    merged, _ = case([[0, 1, 2], [0, 1, 0]], weights, merge="same").run(backend)
    assert merged.weights[0].tolist() == [INF, 0, 0]
    assert merged.weights[1].isnan().tolist() == [True, False, False]


@backends
@pytest.mark.parametrize("merge", ["none", "same"])
def test_a_product_of_zero_keeps_its_sign(backend: str, merge: str) -> None:
    """A weight of 1 times -0 is -0, also where slots are merged; what that slot reads stays active."""
    scale = torch.full((6, 6), -0.0)
    call = case([[0, 1], [2, 3]], [[1.0, 0.5], [1.0, 0.5]], scale=scale, merge=merge)
    routing, counts = call.run(backend)
    assert routing.ids.tolist() == [[0, 0], [2, 0]]
    expected = [[1.0, 0.0], [1.0, -0.0]] if merge == "same" else [[1.0, -0.0], [1.0, -0.0]]
    assert torch.equal(bits(routing.weights), bits(torch.tensor(expected)))
    assert counts == {
        "steps": 1, "rows": 2, "distinct_before": 4, "distinct_after": 2, "slots": 4,
        "slots_rerouted": 2, "slots_computed": 2, "critical": 0,
    }  # fmt: skip


@backends
@pytest.mark.parametrize("targets", ["primary", "active"])
def test_an_unknown_similarity_is_below_a_threshold_of_0(backend: str, targets: str) -> None:
    """Of expert 4 nothing is known: it stays and counts as critical. Expert 3 goes to 1, known to be at 0."""
    similarity = torch.full((5, 5), NAN).fill_diagonal_(1.0)
    similarity[3, 1] = 0.0
    similarity[:4, 4] = 0.0
    ids = torch.tensor([[0, 3], [1, 4]], dtype=torch.int32)
    call = Case(ids, torch.tensor([[0.5, 0.25], [0.5, 0.25]]), similarity, {"select_top_k": 1})
    routing, counts = call.run(backend, targets=targets)
    assert routing.ids.tolist() == [[0, 1], [1, 4]]
    assert counts == {
        "steps": 1, "rows": 2, "distinct_before": 4, "distinct_after": 3, "slots": 4,
        "slots_rerouted": 1, "slots_computed": 4, "critical": 1,
    }  # fmt: skip


@backends
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.7])
def test_one_unknown_similarity_changes_nothing_for_the_others(backend: str, threshold: float) -> None:
    """One unknown similarity that no slot asks for changes no bit of what the others get."""
    generator = torch.Generator().manual_seed(3)
    similarity = torch.rand(6, 6, generator=generator).fill_diagonal_(1.0)
    similarity[2] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    similarity[0, 5] = 0.0
    forgetful = similarity.clone()
    forgetful[5, 0] = NAN
    ids = torch.tensor([[0, 1, 2], [3, 4, 2], [1, 4, 0]], dtype=torch.int32)
    weights = torch.rand(3, 3, generator=generator)
    options = {"select_top_k": 1, "threshold": threshold, "scale": torch.rand(6, 6, generator=generator)}
    plain, counts = Case(ids, weights, similarity, options).run(backend)
    other, other_counts = Case(ids, weights, forgetful, options).run(backend)
    assert torch.equal(plain.ids, other.ids)
    assert torch.equal(bits(plain.weights), bits(other.weights))
    assert counts == other_counts
