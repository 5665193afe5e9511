"""What must hold for every backend (docs/method.md section 4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sere.reroute.slots import members
from tests.support.batches import Case, bits
from tests.support.calls import cases
from tests.support.properties import (
    any_primary,
    backends,
    few,
    holds,
    kept_slots,
    most_active,
    occurring_experts,
    primary_experts,
    primary_set,
    protected_rows,
    repeats,
    valid_slots,
    without,
    without_protected_rows,
)

pytestmark = pytest.mark.usefixtures("shim_backend")


def assert_nothing_changes(case: Case, backend: str, **changes: Any) -> None:
    """No merging: not a bit. Any merging: not a bit of the rows in which no expert is repeated."""
    plain, _ = case.run(backend, **changes | {"merge": "none", "sentinel": None})
    assert torch.equal(plain.ids, case.ids)
    assert torch.equal(bits(plain.weights), bits(case.weights))
    merged, counts = case.run(backend, **changes)
    once = ~repeats(case)
    assert torch.equal(merged.ids[once], case.ids[once])
    assert torch.equal(bits(merged.weights[once]), bits(case.weights[once]))
    assert counts["slots_rerouted"] == 0


@backends
@given(case=cases())
@holds()
@few
def test_without_a_primary_expert_nothing_changes(backend: str, case: Case) -> None:
    """Then not a bit of any row does, padding included, and nothing is counted; otherwise the step is."""
    routing, counts = case.run(backend)
    assert counts["steps"] == any_primary(case)
    if not any_primary(case):
        assert torch.equal(routing.ids, case.ids)
        assert torch.equal(bits(routing.weights), bits(case.weights))
        assert not any(counts.values())


@backends
@given(case=cases())
@holds()
@few
def test_full_budget_changes_nothing(backend: str, case: Case) -> None:
    """``select_top_k >= K`` is the identity, bit for bit, but for merging what came repeated."""
    case = without(case, "num_tokens", "row_budgets")
    assert_nothing_changes(case, backend, select_top_k=case.ids.shape[1])


@backends
@given(case=cases())
@holds()
@few
def test_unreachable_threshold_changes_nothing(backend: str, case: Case) -> None:
    """A threshold above every similarity is the identity, bit for bit, but for merging what came repeated."""
    assert_nothing_changes(without(case, "num_tokens", "row_budgets"), backend, threshold=1.01)


@backends
@given(case=cases())
@holds()
@few
def test_room_for_all_changes_nothing(backend: str, case: Case) -> None:
    """M at least the number of experts that occur is the identity, but for merging what came repeated."""
    case = without(case, "num_tokens", "row_budgets")
    assert_nothing_changes(case, backend, active_experts=max(1, int(occurring_experts(case).sum())))


@backends
@given(case=cases())
@holds()
@few
def test_heaviest_slots_never_change(backend: str, case: Case) -> None:
    """Without a cap the b_t heaviest slots of each row keep their id unless merging frees them.

    Inputs are not modified.
    """
    case = without(case, "cap")
    ids, weights = case.ids.clone(), case.weights.clone()
    kept = kept_slots(case)
    for merge in ("none", "same"):
        routing, _ = case.run(backend, merge=merge, sentinel=None)
        assert torch.equal(routing.ids[kept], case.ids[kept])
    routing, _ = case.run(backend)
    left = kept & (routing.weights != 0)
    assert torch.equal(routing.ids[left], case.ids[left])
    assert torch.equal(case.ids, ids)
    assert torch.equal(bits(case.weights), bits(weights))


@backends
@given(case=cases())
@holds()
@few
def test_active_set(backend: str, case: Case) -> None:
    """The active set never grows, and its size is |P ∪ C| as counted; ``targets`` does not change it."""
    E = case.similarity.shape[0]
    slots = valid_slots(case)
    before = members(case.ids, slots, E)
    sets = []
    for targets in ("primary", "active"):
        routing, counts = case.run(backend, merge="none", sentinel=None, targets=targets)
        after = members(routing.ids, slots, E)
        assert counts["distinct_before"] == (int(before.sum()) if counts["steps"] else 0)
        assert counts["distinct_after"] == (int(after.sum()) if counts["steps"] else 0)
        assert not bool((after & ~before).any())
        sets.append(after)
    assert torch.equal(*sets)


@backends
@given(case=cases())
@holds()
@few
def test_the_primary_set_is_filled_up_to_m(backend: str, case: Case) -> None:
    """P has M experts, or all that occur; more than M only if rows' own experts are more (with a cap: none).

    Experts of ``keep`` are primary whatever M is.
    """
    case = without_protected_rows(case)
    _, counts = case.run(backend)
    assert counts["distinct_after"] - counts["critical"] == primary_experts(case)
    assert counts["distinct_before"] == (int(occurring_experts(case).sum()) if any_primary(case) else 0)


@backends
@given(case=cases())
@holds()
@few
def test_protected_rows_add_their_experts_and_take_none(backend: str, case: Case) -> None:
    """P is the one of the other rows alone, and beside it the experts of protected rows."""
    protected_slots = valid_slots(case) & protected_rows(case)[:, None]
    expected, alone = members(case.ids, protected_slots, len(case.similarity)), without_protected_rows(case)
    if any_primary(alone):
        expected = expected | primary_set(alone, backend)
    if any_primary(case):
        assert torch.equal(primary_set(case, backend), expected)


@backends
@given(case=cases(), more=st.integers(1, 6))
@holds(more=1)
@few
def test_a_larger_m_only_adds_primary_experts(backend: str, case: Case, more: int) -> None:
    """The primary set at M is part of the one at M + ``more``, with a cap, too."""
    least = max(1, most_active(case))
    fewer, larger = (primary_set(case, backend, active_experts=most) for most in (least, least + more))
    assert not bool((fewer & ~larger).any())


@backends
@given(case=cases())
@holds()
@few
def test_active_targets_are_at_least_as_similar(backend: str, case: Case) -> None:
    """Allowing critical experts as targets can only raise a re-routed slot's similarity."""
    rerouted: list[Tensor] = []
    for targets in ("primary", "active"):
        routing, _ = case.run(backend, merge="none", sentinel=None, targets=targets)
        rerouted.append(routing.ids)
    slots = valid_slots(case) & (rerouted[0] != case.ids)
    source = case.ids[slots].long()
    primary, active = (case.similarity[source, ids[slots].long()] for ids in rerouted)
    assert bool((active >= primary).all())
    assert bool((primary >= torch.tensor(case.options["threshold"])).all())


@backends
@given(case=cases())
@holds()
@few
def test_doing_it_twice_is_doing_it_once(backend: str, case: Case) -> None:
    """With primary targets and no merging, a second pass with the same P changes nothing."""
    changes: dict[str, Any] = {
        "targets": "primary",
        "merge": "none",
        "sentinel": None,
        "scale": None,
        "min_gain": 0.0,
    }
    case = without(case, "active_experts", "cap", "num_tokens", "row_budgets")
    once, _ = case.run(backend, **changes)
    E = case.similarity.shape[0]
    primary = members(case.ids, kept_slots(case), E).nonzero().flatten().tolist()
    again = dataclasses.replace(case, ids=once.ids, weights=once.weights)
    twice, _ = again.run(backend, **changes | {"keep": (*case.options["keep"], *primary)})
    assert torch.equal(twice.ids, once.ids)


@backends
@given(case=cases(dtypes=(torch.float64,)), seed=st.integers(0, 1000))
@holds(seed=0)
@few
def test_merging_keeps_the_layer_output(backend: str, case: Case, seed: int) -> None:
    """Every merge mode gives the layer output of no merging."""
    E = case.similarity.shape[0]
    outputs = torch.randn(E + 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    outputs[E] = 0  # a sentinel's expert gives nothing, neither does a shared one's column here

    def layer_output(merge: str) -> Tensor:
        sentinel = -1 if merge == "sentinel" else None
        routing, _ = case.run(backend, merge=merge, sentinel=sentinel, min_gain=0.0)
        ids = torch.where((routing.ids >= 0) & (routing.ids < E), routing.ids, E).long()
        return (outputs[ids] * routing.weights[:, :, None]).sum(dim=1)

    expected = layer_output("none")
    for merge in ("same", "distinct", "sentinel"):
        torch.testing.assert_close(layer_output(merge), expected, equal_nan=True)


@backends
@given(case=cases())
@holds()
@few
def test_distinct_rows_repeat_an_id_only_when_active_experts_run_out(backend: str, case: Case) -> None:
    """With ``merge="distinct"`` a real row has an id twice only if the row holds every active expert.

    Where no expert is primary nothing changes, and rows repeat what they came with.
    """
    routing, _ = case.run(backend, merge="distinct", sentinel=None)
    if not any_primary(case):
        assert torch.equal(routing.ids, case.ids)
        return
    plain, _ = case.run(backend, merge="none", sentinel=None)
    E = case.similarity.shape[0]
    slots = valid_slots(case)
    active = set(members(plain.ids, slots, E).nonzero().flatten().tolist())
    for t in range(len(case.ids)):
        mine = routing.ids[t][slots[t]].tolist()
        if len(set(mine)) < len(mine):
            assert active <= set(routing.ids[t].tolist())
