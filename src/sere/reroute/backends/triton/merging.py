# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Step 7 of docs/method.md section 4 for a Triton program's rows: experts that come twice."""

from __future__ import annotations

import triton
from triton import language as tl

from sere.reroute.backends.triton.slots import column

# A row has at most so many slots: of the active experts no more can be asked for.
MOST_SLOTS = tl.constexpr(32)


@triton.jit
def merge_row(expert, weight, merging, stays, K: tl.constexpr, KP: tl.constexpr):
    """Sum the weights of equal experts into the lowest slot; return weights, freed slots and which stay.

    All are ``[R, KP]``. A sum stays if one of its slots would.
    """
    slots = tl.arange(0, KP)
    held = tl.where(merging, expert, -1)
    same = (held[:, :, None] == held[:, None, :]) & merging[:, :, None] & merging[:, None, :]
    lower = slots[None, None, :] < slots[None, :, None]
    freed = tl.sum((same & lower).to(tl.int32), axis=2) > 0
    some_stay = tl.sum((same & stays[:, None, :]).to(tl.int32), axis=2) > 0
    total = weight
    # In the order of the slots, as the reference adds: another order rounds otherwise.
    for j in range(1, K):
        theirs = tl.sum(tl.where(slots[None, :] == j, held, 0), axis=1)
        adds = merging & (held == theirs[:, None]) & (slots < j)[None, :]
        total = tl.where(adds, total + column(weight, j, KP)[:, None], total)
    return tl.where(freed, 0.0, total), freed, freed | ~merging | some_stay


@triton.jit
def fill_distinct(held, freed, state_p, E: tl.constexpr, EP: tl.constexpr):
    """Give freed slots, in their order, the lowest active experts that are not yet in the row.

    ``held`` is ``[R, KP]``: each slot's expert, or -1; a freed one keeps its own where all are in the row.
    """
    experts, places = tl.arange(0, EP), tl.arange(0, MOST_SLOTS)
    active = (tl.load(state_p + experts, mask=experts < E, other=0) != 0).to(tl.int32)
    place = tl.cumsum(active, axis=0) - active
    # The lowest active experts, [MOST_SLOTS]; -2 beyond the last one, which no slot holds.
    listed = (place[:, None] == places[None, :]) & (active != 0)[:, None]
    lowest = tl.sum(tl.where(listed, experts[:, None] + 2, 0), axis=0) - 2
    taken = (held[:, :, None] == lowest[None, None, :]) & ~freed[:, :, None]
    unused = (tl.sum(taken.to(tl.int32), axis=1) == 0) & (lowest >= 0)[None, :]
    turn = tl.cumsum(unused.to(tl.int32), axis=1) - unused.to(tl.int32)
    wanted = tl.cumsum(freed.to(tl.int32), axis=1) - freed.to(tl.int32)
    gets = freed[:, :, None] & unused[:, None, :] & (wanted[:, :, None] == turn[:, None, :])
    filler = tl.sum(tl.where(gets, lowest[None, None, :] + 1, 0), axis=2)
    return tl.where(filler > 0, filler - 1, held)
