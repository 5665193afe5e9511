"""What the property tests of re-routing share: calls without a primary expert, and what counts in a call."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example
from hypothesis import strategies as st
from torch import Tensor

from sere.reroute.constants import LIMIT_ROWS
from sere.reroute.limits import active_by_rows
from sere.reroute.slots import has_weight, members, real_rows, weight_ranks, whole_budgets
from tests.support.batches import BACKENDS, Case
from tests.support.calls import cases, examples, outside

backends = pytest.mark.parametrize("backend", BACKENDS)
few = examples(60)


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


def holds(
    name: str = "case", make: Callable[[Case], Any] = lambda case: case, **others: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a property face the calls in which no expert is primary, each as what ``make`` makes of it."""

    def with_examples(test: Callable[..., None]) -> Callable[..., None]:
        for case in NO_PRIMARY:
            test = example(**{name: make(case)}, **others)(test)
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
    return whole_budgets(given_budgets, case.options["select_top_k"], len(case.ids), case.ids.device)


def repeats(case: Case) -> Tensor:
    """Rows that came with an expert in several slots that count, ``[T]`` bool."""
    slots = valid_slots(case)
    same = (case.ids[:, :, None] == case.ids[:, None, :]) & slots[:, :, None] & slots[:, None, :]
    return same.sum(dim=(1, 2)) > slots.sum(dim=1)


def without(case: Case, *names: str) -> Case:
    return dataclasses.replace(case, options={k: v for k, v in case.options.items() if k not in names})


def padding_slots(case: Case) -> Tensor:
    """The slots of padding rows, ``[T, K]`` bool."""
    padding = ~real_rows(case.ids, budgets(case), case.options.get("num_tokens"))
    return padding[:, None].expand_as(case.ids)


def put(case: Case, slots: Tensor, ids: list[int], weights: list[float]) -> Case:
    """The same call with other ids and weights in some slots, in their order."""
    new_ids, new_weights = case.ids.clone(), case.weights.clone()
    new_ids[slots] = torch.tensor(ids, dtype=case.ids.dtype)
    new_weights[slots] = torch.tensor(weights, dtype=case.weights.dtype)
    return dataclasses.replace(case, ids=new_ids, weights=new_weights)


def put_nan(case: Case, slots: Tensor) -> Case:
    """The same call with an id that is no expert's, and a weight that is no number, in some slots."""
    count = int(slots.sum())
    return put(case, slots, [-1] * count, [math.nan] * count)


def _junk(draw: st.DrawFn, case: Case, ids: st.SearchStrategy[int], slots: Tensor) -> Case:
    count = int(slots.sum())
    odd_weights = st.sampled_from([0.0, -0.0, 7.0, math.nan, math.inf, -math.inf])
    return put(
        case,
        slots,
        draw(st.lists(ids, min_size=count, max_size=count)),
        draw(st.lists(odd_weights, min_size=count, max_size=count)),
    )


@st.composite
def calls_with_other_padding(draw: st.DrawFn) -> tuple[Case, Case]:
    """A call, and the same with anything in its padding rows."""
    case = draw(cases())
    E = case.similarity.shape[0]
    return case, _junk(draw, case, st.integers(0, E - 1) | outside(E, case.ids.dtype), padding_slots(case))


@st.composite
def calls_with_other_outsiders(draw: st.DrawFn) -> tuple[Case, Case, Tensor]:
    """A call in which some slots have no expert, the same with anything else in them, and these slots."""
    case = draw(cases())
    seed = draw(st.integers(0, 1000))
    slots = torch.rand(case.ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    count = int(slots.sum())
    plain = put(case, slots, [-1] * count, [0.0] * count)
    return plain, _junk(draw, plain, outside(len(case.similarity), case.ids.dtype), slots), slots


def occurring_experts(case: Case) -> Tensor:
    """Which experts occur, ``[E]`` bool."""
    return members(case.ids, valid_slots(case), len(case.similarity))


def kept_slots(case: Case) -> Tensor:
    """The b_t heaviest slots of every real row, ``[T, K]`` bool."""
    slots = valid_slots(case)
    return slots & (weight_ranks(case.weights, slots) < budgets(case)[:, None])


def protected_rows(case: Case) -> Tensor:
    """Real rows that are not re-routed, ``[T]`` bool."""
    real = real_rows(case.ids, budgets(case), case.options.get("num_tokens"))
    return real & (budgets(case) >= case.ids.shape[1])


def most_active(case: Case) -> int:
    """M for the rows of the step that may be re-routed."""
    real = real_rows(case.ids, budgets(case), case.options.get("num_tokens"))
    rows = int((real & ~protected_rows(case)).sum())
    limits = active_by_rows(case.options.get("active_experts", 0), len(case.similarity), case.ids.shape[1])
    return limits[max(1, min(rows, LIMIT_ROWS)) - 1]


def without_protected_rows(case: Case) -> Case:
    """The same step in which the rows that are protected are padding."""
    row_budgets = torch.where(protected_rows(case), -1, budgets(case))
    return dataclasses.replace(case, options=case.options | {"row_budgets": row_budgets})


def primary_experts(case: Case) -> int:
    """How many experts are primary without protected rows: M, but for those that must be, or occur."""
    slots, E = valid_slots(case), len(case.similarity)
    must = slots & torch.isin(case.ids, torch.tensor(case.options["keep"], dtype=case.ids.dtype))
    if not case.options.get("cap", False):
        must |= kept_slots(case)
    least = int(members(case.ids, must, E).sum())
    return min(int(occurring_experts(case).sum()), max(least, most_active(case)))


def primary_set(case: Case, backend: str, **changes: Any) -> Tensor:
    """P as a backend chooses it, ``[E]`` bool, in a step in which some expert is primary.

    Every secondary expert finds a primary one, so the primary ones are all that are left.
    """
    E = len(case.similarity)
    alike = dataclasses.replace(case, similarity=torch.full((E, E), 0.5).fill_diagonal_(1.0))
    routing, _ = alike.run(backend, threshold=0.0, merge="none", sentinel=None, **changes)
    return members(routing.ids, valid_slots(case), E)


def any_primary(case: Case) -> bool:
    """Whether an expert is primary: nothing at all changes otherwise."""
    of_protected_rows = valid_slots(case) & protected_rows(case)[:, None]
    return bool(of_protected_rows.any()) or primary_experts(without_protected_rows(case)) > 0
