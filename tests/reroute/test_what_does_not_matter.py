"""Orders, names and what does not count change no result, on any backend (docs/method.md section 4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from sere.reroute.slots import expert_masses, members, real_rows
from tests.support.batches import Case, bits
from tests.support.calls import cases
from tests.support.properties import (
    any_primary,
    backends,
    budgets,
    calls_with_other_outsiders,
    calls_with_other_padding,
    few,
    holds,
    padding_slots,
    put_nan,
    valid_slots,
    without,
)

pytestmark = pytest.mark.usefixtures("shim_backend")


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


def _equal_masses(case: Case) -> bool:
    """Whether two experts that occur have the same mass, so that their ids decide."""
    slots, E = valid_slots(case), len(case.similarity)
    sensitivity = case.options.get("sensitivity", torch.ones(E))
    masses = expert_masses(case.ids, case.weights, slots, sensitivity)[members(case.ids, slots, E)].tolist()
    return len(set(masses)) < len(masses)


@backends
@given(case=cases(), seed=st.integers(0, 1000))
@holds(seed=0)
@few
def test_expert_names_do_not_matter(backend: str, case: Case, seed: int) -> None:
    """Relabelling the experts commutes with re-routing when similarities and masses are distinct."""
    case = without(case, "num_tokens", "scale", "min_gain")
    E = case.similarity.shape[0]
    if _equal_masses(case):
        case = without(case, "active_experts", "cap")
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
    changes: dict[str, Any] = {"keep": keep}
    if "sensitivity" in case.options:
        changes["sensitivity"] = case.options["sensitivity"][names.argsort()]
    expected, _ = case.run(backend)
    renamed_case = dataclasses.replace(case, ids=renamed.to(case.ids.dtype), similarity=similarity)
    actual, _ = renamed_case.run(backend, **changes)
    real = real_rows(case.ids, budgets(case), None)
    mine, theirs = expected.ids[real].long(), actual.ids[real].long()
    assert torch.equal(torch.where((mine >= 0) & (mine < E), names[mine.clamp(0, E - 1)], mine), theirs)
    assert torch.equal(bits(actual.weights), bits(expected.weights))


@backends
@given(calls=calls_with_other_padding())
@holds("calls", lambda case: (case, put_nan(case, padding_slots(case))))
@few
def test_padding_contents_do_not_matter(backend: str, calls: tuple[Case, Case]) -> None:
    """Whatever padding rows hold, real rows come out the same, and padding rows activate nothing new.

    Where no expert is primary, padding rows keep what they hold, like all others.
    """
    case, junk = calls
    E, padding = case.similarity.shape[0], padding_slots(case)
    expected, expected_counts = case.run(backend)
    actual, counts = junk.run(backend)
    assert torch.equal(actual.ids[~padding], expected.ids[~padding])
    assert torch.equal(bits(actual.weights)[~padding], bits(expected.weights)[~padding])
    assert counts == expected_counts
    replaced = padding & (junk.ids >= 0) & (junk.ids < E) & any_primary(case)
    assert not bool(actual.weights[replaced].any())
    active = {*actual.ids[valid_slots(case)].tolist(), case.options["sentinel"]}
    assert set(actual.ids[replaced].tolist()) <= active
    left = padding & ~replaced
    assert torch.equal(actual.ids[left], junk.ids[left])
    assert torch.equal(bits(actual.weights)[left], bits(junk.weights)[left])


@backends
@given(calls=calls_with_other_outsiders())
@holds("calls", lambda case: (case, put_nan(case, case.ids < 0), case.ids < 0))
@few
def test_contents_of_slots_without_an_expert_do_not_matter(
    backend: str, calls: tuple[Case, Case, Tensor]
) -> None:
    """A slot whose id is no expert's passes through, whatever its id and weight are, and no other sees it."""
    plain, junk, slots = calls
    expected, expected_counts = plain.run(backend)
    actual, counts = junk.run(backend)
    assert torch.equal(actual.ids, torch.where(slots, junk.ids, expected.ids))
    assert torch.equal(bits(actual.weights), torch.where(slots, bits(junk.weights), bits(expected.weights)))
    assert counts == expected_counts
