"""Dropping secondary slots: SERE's active set without a substitute, against plain loops and by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sere.policies import Drop
from sere.reroute import reroute
from sere.reroute.limits import active_by_rows
from tests.support.plain_rules import PlainStep, assert_same, dropped, plain_steps
from tests.support.policies import dense, route, route_worked, top_slots


def plain_primary_set(step: PlainStep, select_top_k: int, active_experts: int | str) -> set[int]:
    """SERE's primary set in plain loops; docs/method.md section 4, step 3."""
    rows = step.open_rows()
    kept = {step.id(slot) for t in rows for slot in step.kept(t, select_top_k)}
    mass: dict[int, int] = {}
    for t in rows:
        for slot in step.valid(t):
            square = step.weight(slot) * step.weight(slot)
            mass[step.id(slot)] = mass.get(step.id(slot), 0) + round(square * square * 2**34)
    most = active_by_rows(active_experts, step.E, step.K)[max(len(rows), 1) - 1]  # type: ignore[arg-type]
    rest = sorted(mass.keys() - kept, key=lambda expert: (-mass[expert], expert))
    return step.protected_experts() | kept | set(rest[: max(0, most - len(kept))])


@settings(max_examples=60)
@given(
    step=plain_steps(),
    select_top_k=st.integers(1, 3),
    active_experts=st.sampled_from([0, 1, 3, 5, "auto"]),
    renormalize=st.booleans(),
)
def test_slots_outside_the_primary_set_are_dropped(
    step: PlainStep, select_top_k: int, active_experts: int | str, renormalize: bool
) -> None:
    """Ids and weights are those of the plain loops."""
    policy = Drop(select_top_k, active_experts, renormalize)  # type: ignore[arg-type]
    result, _ = route(policy, step.E, step.ids, step.weights, **step.given)
    primary = plain_primary_set(step, select_top_k, active_experts)
    assert_same(
        result,
        dropped(step, lambda slot: step.id(slot) in primary, renormalize=renormalize and bool(primary)),
    )


def test_weights_of_dropped_slots_are_lost_or_shared() -> None:
    """S=1, M=0: {0, 3} are primary. Row 1 has 3 (0.35) and 0 (0.20): 0.55 stays, or the whole 0.80."""
    result, _ = route_worked(Drop(1, 0))
    assert result.ids.tolist() == [[0, 0, 0], [3, 3, 0], [0, 0, 0]]
    assert dense(result, 1) == pytest.approx([0.2, 0, 0, 0.35, 0, 0])
    result, _ = route_worked(Drop(1, 0, renormalize=True))
    assert dense(result, 1) == pytest.approx([0.2 * 0.8 / 0.55, 0, 0, 0.35 * 0.8 / 0.55, 0, 0])


@pytest.mark.parametrize("active_experts", [0, 3, 5, "auto"])
def test_the_experts_that_stay_are_those_of_sere_at_equal_settings(active_experts: int | str) -> None:
    """Only what happens to the other slots differs."""
    ids, weights = top_slots()
    result, seen = route_worked(Drop(1, active_experts))  # type: ignore[arg-type]
    sere = reroute(ids, weights, torch.ones(6, 6), active_experts=active_experts)  # type: ignore[arg-type]
    assert set(result.ids.flatten().tolist()) == set(sere.ids.flatten().tolist())
    assert seen["distinct_after"] == len(sere.ids.unique())


def test_a_row_without_a_primary_slot_reads_no_expert_of_its_own() -> None:
    """A budget of 0: its slots get the lowest expert that runs, with weight 0."""
    ids, weights = torch.tensor([[4, 5], [2, 3]]), torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    result, _ = route(Drop(1, 0), 6, ids, weights, row_budgets=torch.tensor([0, 1]))
    assert result.ids.tolist() == [[2, 2], [2, 2]]
    assert result.weights[0].tolist() == [0, 0]
    assert result.weights[1, 1] == 0


def test_keeping_all_slots_changes_nothing() -> None:
    """S = K is bitwise identity, with and without renormalization."""
    ids, weights = top_slots()
    for renormalize in (False, True):
        result, _ = route_worked(Drop(3, renormalize=renormalize))
        assert torch.equal(result.ids, ids)
        assert torch.equal(result.weights, weights)
