"""What must hold for every backend (docs/method.md section 4)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sere.reroute import COUNTERS
from sere.reroute.slots import has_weight, members, real_rows, weight_ranks
from tests.support.batches import BACKENDS, Case, bits, cases, outside

pytestmark = pytest.mark.usefixtures("shim_backend")

backends = pytest.mark.parametrize("backend", BACKENDS)
few = settings(max_examples=60)


def _no_primary(merge: str, **changes: Any) -> Case:
    """A call in which no expert is primary, with a row that comes with an expert twice."""
    options: dict[str, Any] = {"select_top_k": 1, "threshold": 0.0, "keep": (), "targets": "primary"}
    options |= {"merge": merge, "sentinel": -1 if merge == "sentinel" else None}
    ids = torch.tensor([[1, 1], [1, 0]], dtype=torch.int32)
    weights = torch.tensor([[0.5, 0.25], [0.5, 0.25]]) * changes.pop("times", 1)
    return Case(ids, weights, torch.full((2, 2), 0.5).fill_diagonal_(1.0), options | changes)


NO_PRIMARY = [
    _no_primary(merge, **changes)
    for merge in ("none", "same", "distinct", "sentinel")
    for changes in (
        {"row_budgets": torch.tensor([0, 0])},
        {"row_budgets": torch.tensor([0, -1])},
        {"num_tokens": 0},
        {"times": 0},
        {"times": math.nan},
    )
]


def holds(**others: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a property face the calls in which no expert is primary, which are rare among drawn ones."""

    def with_examples(test: Callable[..., None]) -> Callable[..., None]:
        for case in NO_PRIMARY:
            test = example(case=case, **others)(test)
        return test

    return with_examples


def valid_slots(case: Case) -> Tensor:
    """Real rows' slots that count."""
    E = case.similarity.shape[0]
    real = real_rows(case.ids, budgets(case), case.options.get("num_tokens"))
    return (case.ids >= 0) & (case.ids < E) & has_weight(case.weights) & real[:, None]


def budgets(case: Case) -> Tensor:
    """b_t of every row."""
    given_budgets = case.options.get("row_budgets")
    return (
        torch.full((len(case.ids),), case.options["select_top_k"]) if given_budgets is None else given_budgets
    )


def repeats(case: Case) -> Tensor:
    """Rows that came with an expert in several slots that count, ``[T]`` bool."""
    slots = valid_slots(case)
    same = (case.ids[:, :, None] == case.ids[:, None, :]) & slots[:, :, None] & slots[:, None, :]
    return same.sum(dim=(1, 2)) > slots.sum(dim=1)


def assert_nothing_changes(case: Case, backend: str, **changes: Any) -> None:
    """No merging: not a bit. Any merging: not a bit of the rows in which no expert is repeated."""
    plain, _ = case.run(backend, **changes | {"merge": "none", "sentinel": None})
    assert torch.equal(plain.ids, case.ids)
    assert torch.equal(bits(plain.weights), bits(case.weights))
    merged, counters = case.run(backend, **changes)
    once = ~repeats(case)
    assert torch.equal(merged.ids[once], case.ids[once])
    assert torch.equal(bits(merged.weights[once]), bits(case.weights[once]))
    assert counters[COUNTERS.index("slots_rerouted")] == 0


def without(case: Case, *names: str) -> Case:
    return dataclasses.replace(case, options={k: v for k, v in case.options.items() if k not in names})


def junk_in(draw: st.DrawFn, case: Case, ids: st.SearchStrategy[int], slots: Tensor) -> Case:
    """The same call with anything in some slots: weights that are no numbers, too."""
    odd_weights = st.sampled_from([0.0, -0.0, 7.0, math.nan, math.inf, -math.inf])
    new_ids, new_weights = case.ids.clone(), case.weights.clone()
    for t, k in slots.nonzero().tolist():
        new_ids[t, k], new_weights[t, k] = draw(ids), draw(odd_weights)
    return dataclasses.replace(case, ids=new_ids, weights=new_weights)


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
def test_heaviest_slots_never_change(backend: str, case: Case) -> None:
    """The b_t heaviest slots of each row keep their id unless merging frees them; inputs are not modified."""
    ids, weights = case.ids.clone(), case.weights.clone()
    kept = valid_slots(case) & (weight_ranks(case.weights, valid_slots(case)) < budgets(case)[:, None])
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
        routing, counters = case.run(backend, merge="none", sentinel=None, targets=targets)
        after = members(routing.ids, slots, E)
        counted = dict(zip(COUNTERS, counters.tolist(), strict=True))
        if counted["steps"]:
            assert counted["distinct_before"] == int(before.sum())
            assert counted["distinct_after"] == int(after.sum())
        assert not bool((after & ~before).any())
        sets.append(after)
    assert torch.equal(*sets)


@backends
@given(case=cases())
@holds()
@few
def test_active_targets_are_at_least_as_similar(backend: str, case: Case) -> None:
    """Allowing critical experts as targets can only raise a moved slot's similarity."""
    moved_to: list[Tensor] = []
    for targets in ("primary", "active"):
        routing, _ = case.run(backend, merge="none", sentinel=None, targets=targets)
        moved_to.append(routing.ids)
    slots = valid_slots(case) & (moved_to[0] != case.ids)
    source = case.ids[slots].long()
    primary, active = (case.similarity[source, ids[slots].long()] for ids in moved_to)
    assert bool((active >= primary).all())
    assert bool((primary >= torch.tensor(case.options["threshold"])).all())


@backends
@given(case=cases(), seed=st.integers(0, 1000))
@holds(seed=0)
@few
def test_row_order_does_not_matter(backend: str, case: Case, seed: int) -> None:
    """Permuting the rows permutes the result."""
    case = without(case, "num_tokens")
    shuffle = torch.randperm(len(case.ids), generator=torch.Generator().manual_seed(seed))
    expected, _ = case.run(backend)
    shuffled = dataclasses.replace(case, ids=case.ids[shuffle], weights=case.weights[shuffle])
    changes: dict[str, Any] = {}
    if "row_budgets" in case.options:
        changes["row_budgets"] = case.options["row_budgets"][shuffle]
    actual, _ = shuffled.run(backend, **changes)
    assert torch.equal(actual.ids, expected.ids[shuffle])
    assert torch.equal(bits(actual.weights), bits(expected.weights[shuffle]))


@backends
@given(case=cases(), seed=st.integers(0, 1000))
@holds(seed=0)
@few
def test_expert_names_do_not_matter(backend: str, case: Case, seed: int) -> None:
    """Relabelling the experts commutes with re-routing when similarities are distinct."""
    case = without(case, "num_tokens", "min_active", "scale")
    E = case.similarity.shape[0]
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randperm(E * E, generator=generator).reshape(E, E) / (E * E)
    case = dataclasses.replace(case, similarity=distinct.fill_diagonal_(1.0))
    assume(case.options["merge"] != "distinct")  # which takes the lowest id, a matter of names
    names = torch.randperm(E, generator=generator)
    inside = (case.ids >= 0) & (case.ids < E)
    renamed = torch.where(inside, names[torch.where(inside, case.ids, 0).long()], case.ids.long())
    similarity = torch.empty_like(case.similarity)
    similarity[names[:, None], names[None, :]] = case.similarity
    keep = tuple(int(names[e]) for e in case.options["keep"])
    expected, _ = case.run(backend)
    actual, _ = dataclasses.replace(case, ids=renamed.to(case.ids.dtype), similarity=similarity).run(
        backend, keep=keep
    )
    real = real_rows(case.ids, budgets(case), None)
    mine, theirs = expected.ids[real].long(), actual.ids[real].long()
    assert torch.equal(torch.where((mine >= 0) & (mine < E), names[mine.clamp(0, E - 1)], mine), theirs)
    assert torch.equal(bits(actual.weights), bits(expected.weights))


@backends
@given(case=cases())
@holds()
@few
def test_doing_it_twice_is_doing_it_once(backend: str, case: Case) -> None:
    """With primary targets and no merging, a second pass with the same P changes nothing."""
    changes: dict[str, Any] = {"targets": "primary", "merge": "none", "sentinel": None, "scale": None}
    case = without(case, "min_active", "num_tokens", "row_budgets")
    once, _ = case.run(backend, **changes)
    E = case.similarity.shape[0]
    kept = valid_slots(case) & (weight_ranks(case.weights, valid_slots(case)) < budgets(case)[:, None])
    primary = members(case.ids, kept, E).nonzero().flatten().tolist()
    again = dataclasses.replace(case, ids=once.ids, weights=once.weights)
    twice, _ = again.run(backend, **changes | {"keep": (*case.options["keep"], *primary)})
    assert torch.equal(twice.ids, once.ids)


@backends
@given(case=cases(), data=st.data())
@few
def test_padding_contents_do_not_matter(backend: str, case: Case, data: st.DataObject) -> None:
    """Whatever padding rows hold, real rows come out the same, and padding rows activate nothing new."""
    E = case.similarity.shape[0]
    padding = ~real_rows(case.ids, budgets(case), case.options.get("num_tokens"))
    ids = st.integers(0, E - 1) | outside(E, case.ids.dtype)
    junk = junk_in(data.draw, case, ids, padding[:, None].expand_as(case.ids))
    expected, expected_counters = case.run(backend)
    actual, counters = junk.run(backend)
    assert torch.equal(actual.ids[~padding], expected.ids[~padding])
    assert torch.equal(actual.weights[~padding], expected.weights[~padding])
    assert counters.tolist() == expected_counters.tolist()
    inside = (junk.ids >= 0) & (junk.ids < E)
    replaced = padding[:, None] & inside if counters[0] else torch.zeros_like(inside)
    assert bool((actual.weights[replaced] == 0).all())
    active = {*actual.ids[valid_slots(case)].tolist(), case.options["sentinel"]}
    assert set(actual.ids[replaced].tolist()) <= active
    left = padding[:, None] & ~replaced
    assert torch.equal(actual.ids[left], junk.ids[left])
    torch.testing.assert_close(actual.weights[left], junk.weights[left], rtol=0, atol=0, equal_nan=True)


@backends
@given(case=cases(), seed=st.integers(0, 1000), data=st.data())
@few
def test_contents_of_slots_without_an_expert_do_not_matter(
    backend: str, case: Case, seed: int, data: st.DataObject
) -> None:
    """A slot whose id is no expert's passes through, whatever its id and weight are, and no other sees it."""
    E = case.similarity.shape[0]
    chosen = torch.rand(case.ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    plain = dataclasses.replace(
        case, ids=case.ids.masked_fill(chosen, -1), weights=case.weights.masked_fill(chosen, 0.0)
    )
    junk = junk_in(data.draw, plain, outside(E, case.ids.dtype), chosen)
    expected, expected_counters = plain.run(backend)
    actual, counters = junk.run(backend)
    assert torch.equal(actual.ids, torch.where(chosen, junk.ids, expected.ids))
    weights = torch.where(chosen, junk.weights, expected.weights)
    torch.testing.assert_close(actual.weights, weights, rtol=0, atol=0, equal_nan=True)
    assert counters.tolist() == expected_counters.tolist()


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
        routing, _ = case.run(backend, merge=merge, sentinel=-1 if merge == "sentinel" else None)
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
    routing, counters = case.run(backend, merge="distinct", sentinel=None)
    if counters[COUNTERS.index("steps")] == 0:
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
