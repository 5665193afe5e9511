"""Any legal call of re-routing, for hypothesis to draw."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from sere.config import ActiveExperts
from sere.config.active_experts import may_be_zero
from sere.reroute.constants import LAYER_BUDGET, PADDING_BUDGET
from tests.support.batches import (
    Case,
    batch,
    bits,
    forget_some,
    odd_weight_bits,
    similarity_matrix,
)


def examples(count: int) -> settings:
    """So many examples of a property, or at most ``MOST_EXAMPLES`` of the environment.

    Triton on a device compiles nearly every example, which takes seconds: ``make gpu-test`` sets it there.
    """
    return settings(max_examples=min(count, int(os.environ.get("MOST_EXAMPLES", count))))


def active_experts(E: int, T: int) -> st.SearchStrategy[ActiveExperts]:
    """M in each of its forms: a number, a share of E, by the rows of the step, ``"auto"``; often 0."""
    rows = st.lists(st.integers(1, max(1, T) + 2), min_size=1, max_size=4, unique=True).map(sorted)
    points = rows.flatmap(
        lambda rows: st.tuples(*[st.tuples(st.just(row), st.integers(0, E + 1)) for row in rows])
    )
    shares = st.sampled_from([0.01, 0.25, 0.5, 1.0])
    return st.just(0) | st.integers(0, E + 1) | shares | st.just("auto") | points


@st.composite
def cases(
    draw: st.DrawFn, *, dtypes: tuple[torch.dtype, ...] = (torch.float32,), odd_weights: bool = False
) -> Case:
    """Any legal call: every option, padding, sentinels, zero experts, shared columns, ties, repeated ids.

    Some similarities may be unknown; in one call of eight no expert is primary, for one reason or another.
    With ``odd_weights`` some weights, and factors of the scale, are such as no router should give.
    """
    E = draw(st.integers(1, 24))
    K = draw(st.integers(1, min(E, 6)))
    T = draw(st.integers(0, 12))
    seed = draw(st.integers(0, 2**16))
    ids, weights = batch(
        T, K, E, seed, order=draw(st.sampled_from(["router", "shuffled", "ascending"])),
        ties=draw(st.booleans()), dtype=draw(st.sampled_from(dtypes)),
    )  # fmt: skip
    if draw(st.booleans()):
        ids = ids.long()
    if T and draw(st.booleans()):
        _disturb(draw, ids, weights, E)
    if T and odd_weights:
        _put_odd_weights(draw, weights)
    similarity = similarity_matrix(E, seed, levels=draw(st.sampled_from([None, 3])))
    if draw(st.booleans()):
        similarity = forget_some(similarity, seed, share=draw(st.sampled_from([0.2, 0.9, 1.0])))
    merge = draw(st.sampled_from(["none", "same", "distinct", "sentinel"]))
    most = draw(active_experts(E, T))
    options: dict[str, Any] = {
        "select_top_k": draw(st.integers(1, K + 1)),
        "threshold": draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.5])),
        "active_experts": most,
        "cap": not may_be_zero(most) and draw(st.booleans()),
        "keep": tuple(draw(st.lists(st.integers(0, E - 1), max_size=3))),
        "targets": draw(st.sampled_from(["primary", "active"])),
        "merge": merge,
        "sentinel": -1 if merge == "sentinel" else None,
    }
    if draw(st.booleans()):
        options["num_tokens"] = draw(st.integers(0, T))
    if draw(st.booleans()):
        options["row_budgets"] = torch.tensor(
            [draw(st.integers(LAYER_BUDGET - 1, K + 1)) for _ in range(T)], dtype=torch.int32
        )
    if draw(st.booleans()):
        options["scale"] = torch.rand(E, E, generator=torch.Generator().manual_seed(seed)) + 0.5
        if odd_weights:
            factors = torch.tensor([0.0, -0.0, -1.5, 1e-30, 3e38, -3e38])
            options["scale"].view(-1)[::3] = factors[torch.arange(E * E)[::3] % 6]
        options["min_gain"] = draw(st.sampled_from([0.0, 0.01, 0.1, 1.0]))
    if draw(st.booleans()):
        levels = torch.tensor([1.0, 0.3, 1e-3, 1e-30])
        options["sensitivity"] = levels[torch.randint(4, (E,), generator=torch.Generator().manual_seed(seed))]
    if draw(st.integers(0, 7)) == 7:
        _leave_no_primary(draw, ids, weights, options)
    return Case(ids, weights, similarity, options)


def _leave_no_primary(draw: st.DrawFn, ids: Tensor, weights: Tensor, options: dict[str, Any]) -> None:
    """Change a call in place so that no expert is primary."""
    reason = draw(st.sampled_from(["no budgets", "no tokens", "no weights", "no ids"]))
    if reason == "no budgets":
        options |= {"keep": (), "active_experts": 0, "cap": False}
        options["row_budgets"] = torch.tensor(
            [draw(st.integers(PADDING_BUDGET, 0)) for _ in ids], dtype=torch.int32
        )
    elif reason == "no tokens":
        options["num_tokens"] = 0
    elif reason == "no weights":
        weights.fill_(draw(st.sampled_from([0.0, -0.0, math.nan])))
    else:
        ids.fill_(draw(st.sampled_from([-1, 2**31 - 1])))


def _put_odd_weights(draw: st.DrawFn, weights: Tensor) -> None:
    """Put odd weights into some slots, in place."""
    T, K = weights.shape
    odd = st.sampled_from(odd_weight_bits(weights.dtype))
    for _ in range(draw(st.integers(1, T * K))):
        bits(weights)[draw(st.integers(0, T - 1)), draw(st.integers(0, K - 1))] = draw(odd)


def outside(E: int, dtype: torch.dtype) -> st.SearchStrategy[int]:
    """Ids that are no expert's: sentinels and whatever memory held before.

    Of int64 also ids of which 32 bits would be an expert's.
    """
    ends = torch.iinfo(dtype)
    above, below = st.integers(E, ends.max), st.integers(ends.min, -1)
    named = [-1, E, ends.min, ends.max]
    if dtype == torch.int64:
        named += [2**31, 2**32, 2**32 + E - 1, -(2**32), -(2**40)]
    return st.sampled_from(named) | above | below


def _disturb(draw: st.DrawFn, ids: Tensor, weights: Tensor, E: int) -> None:
    """Put sentinels, fused shared experts, zero experts and another slot's id into some slots, in place."""
    T, K = ids.shape
    for _ in range(draw(st.integers(0, 4))):
        t, k = draw(st.integers(0, T - 1)), draw(st.integers(0, K - 1))
        kind = draw(st.sampled_from(["outside", "shared", "zero", "repeated"]))
        if kind == "zero":
            ids[t, k], weights[t, k] = 0, 0.0
        elif kind == "repeated":
            ids[t, k] = ids[t, draw(st.integers(0, K - 1))]
        else:
            ids[t, k] = E + 1 if kind == "shared" else draw(outside(E, ids.dtype))
