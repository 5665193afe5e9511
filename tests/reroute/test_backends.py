"""Every backend gives what the plain loops give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.support.batches import (
    BACKENDS,
    FAST,
    Case,
    assert_same_bits,
    batch,
    similarity_matrix,
)
from tests.support.calls import cases, examples

pytestmark = pytest.mark.usefixtures("shim_backend")
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

SHAPES = [
    pytest.param(1, 8, 128, id="one row: nothing to share"),
    pytest.param(2, 1, 4, id="K=1: no secondary slots at S=1"),
    pytest.param(4, 4, 4, id="K=E: every expert in every row"),
    pytest.param(16, 8, 64, id="Qwen3-like, E=64"),
    pytest.param(64, 8, 128, id="Qwen3-30B-A3B at 64 rows"),
    pytest.param(33, 4, 60, id="Qwen1.5-MoE: E is no power of two, odd T"),
    pytest.param(256, 8, 256, id="DeepSeek-V3: E beyond one byte"),
    pytest.param(7, 10, 512, id="Qwen3-Next: K=10, E=512"),
    pytest.param(0, 4, 16, id="no rows at all"),
]


@pytest.mark.parametrize(("S", "threshold"), [(1, 0.0), (2, 0.6), (1, 0.95)])
@pytest.mark.parametrize("order", ["router", "shuffled", "ascending"])
@pytest.mark.parametrize(("T", "K", "E"), SHAPES)
@pytest.mark.parametrize("backend", FAST)
def test_shapes_and_slot_orders(
    backend: str, T: int, K: int, E: int, order: str, S: int, threshold: float
) -> None:
    """Ids equal the reference exactly for every shape and in any slot order."""
    ids, weights = batch(T, K, E, seed=T + E, order=order)
    options = {"select_top_k": S, "threshold": threshold}
    assert_same_bits(Case(ids, weights, similarity_matrix(E, E), options), backend)


@pytest.mark.parametrize("backend", FAST)
@given(case=cases(dtypes=WEIGHT_DTYPES))
@examples(400)
def test_any_call(backend: str, case: Case) -> None:
    """Any combination of options, padding and strange slots has the reference's bits, in every dtype."""
    assert_same_bits(case, backend)


@pytest.mark.parametrize("backend", FAST)
@given(case=cases(dtypes=WEIGHT_DTYPES, odd_weights=True))
@examples(400)
def test_any_call_with_any_weights(backend: str, case: Case) -> None:
    """Weights and factors that no router should give (NaN, infinite, huge, subnormal) have one meaning."""
    assert_same_bits(case, backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("merge", ["same", "distinct", "sentinel"])
def test_sums_go_in_slot_order(backend: str, merge: str) -> None:
    """float64 weights that any other order of addition would round otherwise are summed slot by slot."""
    weights = torch.tensor([[0.4, 0.1, 0.2, 0.3, 1e-17, 0.7]], dtype=torch.float64).repeat(3, 1)
    weights[1], weights[2] = weights[1].flip(0), weights[2].roll(2)
    ids = torch.arange(6, dtype=torch.int32).repeat(3, 1)
    options = {"select_top_k": 1, "merge": merge, "sentinel": -1 if merge == "sentinel" else None}
    keep = {"row_budgets": torch.tensor([1, 0, 0])}
    scale = 0.5 + similarity_matrix(6, 9)
    assert_same_bits(Case(ids, weights, similarity_matrix(6, 9), options | keep | {"scale": scale}), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("merge", "freed"), [("none", [2, 3]), ("same", [2, 3]), ("distinct", [0, 1]), ("sentinel", [-1, -1])]
)
def test_rows_that_come_with_an_expert_twice(backend: str, merge: str, freed: list[int]) -> None:
    """At S = K nothing is re-routed, but such a row is merged: the sum stands in its lower slot."""
    ids = torch.tensor([[2, 2, 1], [0, 3, 3]], dtype=torch.int32)
    weights = torch.tensor([[0.25, 0.5, 0.125], [0.5, 0.25, 0.125]])
    options = {"select_top_k": 3, "merge": merge, "sentinel": -1 if merge == "sentinel" else None}
    routing, counts = Case(ids, weights, similarity_matrix(4, 1), options).run(backend)
    assert routing.ids.tolist() == [[2, freed[0], 1], [0, 3, freed[1]]]
    merged = [[0.75, 0.0, 0.125], [0.5, 0.375, 0.0]]
    assert routing.weights.tolist() == (weights.tolist() if merge == "none" else merged)
    assert counts == {
        "steps": 1, "rows": 2, "distinct_before": 4, "distinct_after": 4, "slots": 6,
        "slots_rerouted": 0, "slots_computed": 6 if merge == "none" else 4, "critical": 0,
    }  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, list])
def test_budgets_of_any_size(backend: str, dtype: Any) -> None:
    """A budget beyond K protects however large it is, one below -1 is padding: none wraps around."""
    huge = 2**31 - 1 if dtype is torch.int32 else 2**32 + 1 if dtype is torch.int64 else 2**70
    budget = [huge, 1, -huge, 0, 1, huge]
    ids, weights = batch(6, 4, 16, seed=4)
    case = Case(ids, weights, similarity_matrix(16, 4), {"select_top_k": 1})
    plain, counts = case.run(backend, row_budgets=[4, 1, -1, 0, 1, 4])
    given_budget = budget if dtype is list else torch.tensor(budget, dtype=dtype)
    large, large_counts = case.run(backend, row_budgets=given_budget)
    assert torch.equal(plain.ids[0], ids[0])
    assert not torch.equal(plain.ids, ids)
    assert torch.equal(large.ids, plain.ids)
    assert torch.equal(large.weights, plain.weights)
    assert large_counts == counts


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("given_number", "meant"),
    [(-1, 0), (-(2**63), 0), (7, 6), (2**32 + 1, 6), (2**63 - 1, 6)],
)
def test_numbers_of_tokens_of_any_size(backend: str, given_number: int, meant: int) -> None:
    """A tensor's value is not looked at before the rows are routed: below 0 is 0, beyond T is T."""
    ids, weights = batch(6, 4, 16, seed=4)
    case = Case(ids, weights, similarity_matrix(16, 4), {"select_top_k": 1})
    plain, counts = case.run(backend, num_tokens=meant)
    given_result, given_counts = case.run(backend, num_tokens=torch.tensor(given_number))
    assert torch.equal(given_result.ids, plain.ids)
    assert torch.equal(given_result.weights, plain.weights)
    assert given_counts == counts


@pytest.mark.parametrize("N", [0, 1, 32, 33, 64, 70])
@pytest.mark.parametrize("backend", FAST)
def test_rows_from_the_number_of_tokens_on(backend: str, N: int) -> None:
    """Kernels that stop at N, in the middle of a tile or at its edge, give what budgets of padding give."""
    ids, weights = batch(70, 4, 16, seed=N)
    options = {"select_top_k": 1, "active_experts": 6, "merge": "distinct"}
    case = Case(ids, weights, similarity_matrix(16, 4), options)
    number, counts = case.run(backend, num_tokens=torch.tensor(N, dtype=torch.int32))
    padding, padding_counts = case.run(backend, row_budgets=[-2] * N + [-1] * (70 - N))
    assert torch.equal(number.ids, padding.ids)
    assert torch.equal(number.weights, padding.weights)
    assert counts == padding_counts
    assert counts["rows"] == N


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("heavy", [0.4496, -0.4496, 1.9999], ids=["positive", "negative", "near the bound"])
def test_the_heavier_of_two_joins(backend: str, heavy: float) -> None:
    """Masses far beyond 2^32 units, also of weights below zero, are compared as they are."""
    T = 570
    ids = torch.tensor([[0, 1, 2, 3]], dtype=torch.int32).repeat(T, 1)
    weights = torch.tensor([[abs(heavy) + 1, 0.998 * heavy, heavy, 0.996 * heavy]]).repeat(T, 1)
    case = Case(
        ids, weights, similarity_matrix(4, 1), {"select_top_k": 1, "threshold": 0.0, "active_experts": 2}
    )
    assert_same_bits(case, backend)
    assert case.run(backend)[0].ids.unique().tolist() == [0, 2]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("weights_dtype", WEIGHT_DTYPES)
def test_dtypes_are_kept(backend: str, ids_dtype: torch.dtype, weights_dtype: torch.dtype) -> None:
    """What comes as int32 and bfloat16 goes as int32 and bfloat16; unmerged weights keep their bits."""
    ids, weights = batch(8, 4, 16, seed=1, dtype=weights_dtype)
    case = Case(ids.to(ids_dtype), weights, similarity_matrix(16, 1), {"select_top_k": 1})
    routing, _ = case.run(backend)
    assert routing.ids.dtype == ids_dtype
    assert torch.equal(routing.weights, weights)
    assert routing.weights.dtype == weights_dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_input(backend: str) -> None:
    """Slices of larger tensors are read as slices, not as if they were contiguous."""
    ids, weights = batch(8, 6, 16, seed=2)
    case = Case(ids[::2, 1:5], weights[::2, 1:5], similarity_matrix(16, 2), {"select_top_k": 1})
    expected, _ = Case(case.ids.contiguous(), case.weights.contiguous(), case.similarity, case.options).run(
        "reference"
    )
    assert torch.equal(case.run(backend)[0].ids, expected.ids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_output_is_written(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poisoned output memory never shows: every slot is written, padding rows too."""
    real_empty = torch.empty_like

    def poisoned(tensor: Tensor, **options: object) -> Tensor:
        return real_empty(tensor, **options).fill_(77)  # type: ignore[call-overload, no-any-return]

    ids, weights = batch(6, 4, 16, seed=3)
    case = Case(ids, weights, similarity_matrix(16, 3), {"select_top_k": 1, "num_tokens": 4})
    expected, _ = case.run(backend)
    monkeypatch.setattr(torch, "empty_like", poisoned)
    actual, _ = case.run(backend)
    assert torch.equal(actual.ids, expected.ids)
    assert torch.equal(actual.weights, expected.weights)


@pytest.mark.parametrize(
    "num_tokens",
    [torch.tensor(4), torch.tensor([4], dtype=torch.int32)],
    ids=["int64, no axis", "int32, one axis"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_device_scalars(backend: str, num_tokens: Tensor) -> None:
    """``num_tokens`` as a tensor or as a number, and budgets as a list or a tensor, give the same."""
    ids, weights = batch(6, 4, 16, seed=4)
    case = Case(ids, weights, similarity_matrix(16, 4), {"select_top_k": 1, "threshold": 0.4})
    plain, _ = case.run(backend, num_tokens=4, row_budgets=[1, 2, -1, 4, 1, 1])
    budgets = torch.tensor([1, 2, -1, 4, 1, 1])
    tensors, _ = case.run(backend, num_tokens=num_tokens, row_budgets=budgets)
    assert torch.equal(tensors.ids, plain.ids)
    assert torch.equal(tensors.weights, plain.weights)
