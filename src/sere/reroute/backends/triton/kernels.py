# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""The launches of the ``triton`` backend, in their order: vote, choose, retarget if asked for, apply.

Between them they hand over one buffer of int64, zeros at first: five numbers for each expert (mass, class,
whether a protected row chose it, target, state), then a few for the step.
"""

from __future__ import annotations

import triton
from triton import language as tl

from sere.reroute import constants
from sere.reroute.backends.triton.merging import fill_distinct, merge_row
from sere.reroute.backends.triton.slots import (
    HAS_COUNTERS,
    bits_of,
    column,
    load_slots,
    real_rows,
    row_budgets,
    value_of,
)
from sere.reroute.stats import COUNTERS

MASS_UNITS, MASS_BOUND = tl.constexpr(float(constants.MASS_UNITS)), tl.constexpr(float(constants.MASS_BOUND))
# A sum with 2⁵² has the other number, rounded to a whole one, in its last bits: ties to the even one.
ROUNDER = tl.constexpr(float(2**52))
LIMIT_ROWS, LIMITS = tl.constexpr(constants.LIMIT_ROWS), tl.constexpr(constants.LIMITS)
GAIN_UNITS = tl.constexpr(float(constants.GAIN_UNITS))
MERGE_NONE, MERGE_DISTINCT = tl.constexpr(constants.MERGE_NONE), tl.constexpr(constants.MERGE_DISTINCT)
MERGE_SENTINEL = tl.constexpr(constants.MERGE_SENTINEL)
(
    STEPS, ROWS, DISTINCT_BEFORE, DISTINCT_AFTER, SLOTS, SLOTS_REROUTED, SLOTS_COMPUTED, CRITICAL
) = (tl.constexpr(COUNTERS.index(name)) for name in (
    "steps", "rows", "distinct_before", "distinct_after", "slots", "slots_rerouted", "slots_computed",
    "critical",
))  # fmt: skip
# An expert's class by the rows that are not protected: in none of their slots (0), in one, in a kept one, and
# in ``keep``.
CHOSEN, KEPT, FIXED = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
# Its state, once P is known.
IS_PRIMARY, IS_CRITICAL = tl.constexpr(1), tl.constexpr(2)
# The parts of the buffer, E numbers each, and behind them the numbers of the step.
MASS, CLASS, BESIDE, TARGET, STATE, STEP = (tl.constexpr(part) for part in range(6))
FREE_ROWS, REAL_ROWS, VALID_SLOTS, LOWEST = (tl.constexpr(part) for part in range(4))
# A neighbor's position and id in one number, and what is above all of them.
POSITIONS, NO_NEIGHBOR = tl.constexpr(1024), tl.constexpr(2**30)


@triton.jit(do_not_specialize=tuple(range(10)))
def vote(
    ids_p, weights_p, budgets_p, num_tokens_p, limits_p, keep_p, buffer_p, T, N, given,
    K: tl.constexpr, KP: tl.constexpr, E: tl.constexpr, R: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Steps 1 and 2, and of 3 what rows say: each expert's class and mass, and the rows that count."""
    number = real_rows(num_tokens_p, T, N, given)
    # Rows from there on are padding: a program that has no others has nothing to say.
    if (tl.program_id(0) * R).to(tl.int64) >= number:
        return
    rows, slots = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, KP)
    _, there, ids, bits = load_slots(ids_p, weights_p, rows, T, K, KP)
    budget = row_budgets(budgets_p, limits_p, rows, T, number, given, K)
    weight = value_of(bits, KIND)
    real = budget >= 0
    valid = there & (ids >= 0) & (ids < E) & real[:, None] & ((weight < 0) | (weight > 0))
    expert = tl.where(valid, ids, 0).to(tl.int32)

    mine, other = weight[:, :, None], weight[:, None, :]
    lower = slots[None, None, :] < slots[None, :, None]
    heavier = ((other > mine) | ((other == mine) & lower)) & valid[:, None, :]
    rank = tl.sum(heavier.to(tl.int32), axis=2)
    protected = (budget == K)[:, None]
    beside, chosen = valid & protected, valid & ~protected
    # Every program writes the same number.
    tl.store(buffer_p + BESIDE * E + expert, tl.full([R, KP], 1, tl.int64), mask=beside)
    fixed = tl.load(keep_p + expert, mask=chosen, other=0) != 0
    of_slot = tl.where(fixed, FIXED, tl.where(rank < budget[:, None], KEPT, CHOSEN))
    tl.atomic_max(buffer_p + CLASS * E + expert, of_slot.to(tl.int64), mask=chosen)

    wide = weight.to(tl.float64)
    square = wide * wide
    units = tl.where(chosen, tl.minimum(square * square * MASS_UNITS, MASS_BOUND), 0.0)
    tl.atomic_add(buffer_p + MASS * E + expert, ((units + ROUNDER) - ROUNDER).to(tl.int64), mask=chosen)
    step_p = buffer_p + STEP * E
    tl.atomic_add(step_p + FREE_ROWS, tl.sum((real & (budget < K)).to(tl.int64), axis=0))
    tl.atomic_add(step_p + REAL_ROWS, tl.sum(real.to(tl.int64), axis=0))
    tl.atomic_add(step_p + VALID_SLOTS, tl.sum(tl.sum(valid.to(tl.int64), axis=1), axis=0))


@triton.jit
def mass_of(buffer_p, sensitivity_p, experts, E: tl.constexpr):
    """Return the masses of experts, float64, 0 beyond the last one."""
    units = tl.load(buffer_p + MASS * E + experts, mask=experts < E, other=0)
    factor = tl.load(sensitivity_p + experts, mask=experts < E, other=0.0)
    return units.to(tl.float64) * factor.to(tl.float64)


@triton.jit
def places(buffer_p, sensitivity_p, of_expert, E: tl.constexpr, EP: tl.constexpr, C: tl.constexpr):
    """Return how many experts become primary before each expert, ``[EP]``; C are compared at a time."""
    experts = tl.arange(0, EP)
    mass = mass_of(buffer_p, sensitivity_p, experts, E)[:, None]
    place = tl.zeros([EP], tl.int32)
    for start in range(0, EP, C):
        others = start + tl.arange(0, C)
        theirs = tl.load(buffer_p + CLASS * E + others, mask=others < E, other=0)[None, :]
        their_mass = mass_of(buffer_p, sensitivity_p, others, E)[None, :]
        tie = (their_mass == mass) & (others[None, :] < experts[:, None])
        first = (theirs == of_expert[:, None]) & ((their_mass > mass) | tie)
        place += tl.sum(((theirs > of_expert[:, None]) | first).to(tl.int32), axis=1)
    return place


@triton.jit
def nearest(position_p, mine, candidates, E: tl.constexpr, EP: tl.constexpr):
    """Return each expert's most similar candidate as position and id in one number, or ``NO_NEIGHBOR``."""
    experts = tl.arange(0, EP)
    inside = (mine < E)[:, None] & (experts < E)[None, :]
    position = tl.load(position_p + mine[:, None] * E + experts[None, :], mask=inside, other=E).to(tl.int32)
    found = candidates[None, :] & (position < E)
    return tl.min(tl.where(found, position * POSITIONS + experts[None, :], NO_NEIGHBOR), axis=1)


@triton.jit(do_not_specialize=tuple(range(6)))
def choose(
    buffer_p, position_p, limits_p, sensitivity_p, counters_p, given,
    E: tl.constexpr, EP: tl.constexpr, B: tl.constexpr, C: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """Steps 3 and 4: P, which each program finds for itself, and the targets of the program's experts."""
    experts, mine = tl.arange(0, EP), tl.program_id(0) * B + tl.arange(0, B)
    step_p = buffer_p + STEP * E
    of_expert = tl.load(buffer_p + CLASS * E + experts, mask=experts < E, other=0)
    chosen = tl.sum((of_expert >= CHOSEN).to(tl.int32), axis=0)
    marked = tl.sum((of_expert >= KEPT).to(tl.int32), axis=0)
    least = tl.sum((of_expert >= FIXED).to(tl.int32), axis=0) if CAP else marked
    rows = tl.minimum(tl.maximum(tl.load(step_p + FREE_ROWS), 1), LIMIT_ROWS)
    first_ones = tl.minimum(tl.maximum(tl.load(limits_p + rows), least), chosen)
    primary = of_expert >= KEPT
    if first_ones != marked:
        place = places(buffer_p, sensitivity_p, of_expert, E, EP, C)
        primary = (of_expert >= CHOSEN) & (place < first_ones)
    beside = tl.load(buffer_p + BESIDE * E + experts, mask=experts < E, other=0) != 0
    primary = primary | beside
    primaries = tl.sum(primary.to(tl.int32), axis=0)

    found = nearest(position_p, mine, primary, E, EP)
    among = tl.sum((primary[None, :] & (experts[None, :] == mine[:, None])).to(tl.int32), axis=1) > 0
    is_chosen = tl.load(buffer_p + CLASS * E + mine, mask=mine < E, other=0) >= CHOSEN
    replaced = is_chosen & ~among & (found < NO_NEIGHBOR)
    critical = is_chosen & ~among & (found >= NO_NEIGHBOR)
    target = tl.where(replaced, found % POSITIONS, mine)
    state = tl.where(among, IS_PRIMARY, tl.where(critical, IS_CRITICAL, 0))
    tl.store(buffer_p + TARGET * E + mine, target.to(tl.int64), mask=mine < E)
    tl.store(buffer_p + STATE * E + mine, state.to(tl.int64), mask=mine < E)

    counting = (given & HAS_COUNTERS != 0) & (primaries > 0)
    if counting:
        criticals = tl.sum(critical.to(tl.int64), axis=0)
        tl.atomic_add(counters_p + CRITICAL, criticals)
        tl.atomic_add(counters_p + DISTINCT_AFTER, criticals)
    if tl.program_id(0) == 0:
        lowest = tl.min(tl.where(primary, experts, E), axis=0)
        tl.store(step_p + LOWEST, lowest.to(tl.int64))
        if counting:
            tl.atomic_add(counters_p + STEPS, 1)
            tl.atomic_add(counters_p + ROWS, tl.load(step_p + REAL_ROWS))
            tl.atomic_add(counters_p + SLOTS, tl.load(step_p + VALID_SLOTS))
            occurring = tl.sum(((of_expert >= CHOSEN) | beside).to(tl.int64), axis=0)
            tl.atomic_add(counters_p + DISTINCT_BEFORE, occurring)
            tl.atomic_add(counters_p + DISTINCT_AFTER, primaries.to(tl.int64))


@triton.jit(do_not_specialize=tuple(range(2)))
def retarget(buffer_p, position_p, E: tl.constexpr, EP: tl.constexpr, B: tl.constexpr):
    """Step 5 with ``targets="active"``: the search once more, over P and C."""
    experts, mine = tl.arange(0, EP), tl.program_id(0) * B + tl.arange(0, B)
    active = tl.load(buffer_p + STATE * E + experts, mask=experts < E, other=0) != 0
    found = nearest(position_p, mine, active, E, EP)
    # An expert that is replaced is chosen and is neither primary nor critical.
    is_chosen = tl.load(buffer_p + CLASS * E + mine, mask=mine < E, other=0) >= CHOSEN
    replaced = is_chosen & (tl.load(buffer_p + STATE * E + mine, mask=mine < E, other=IS_PRIMARY) == 0)
    tl.store(buffer_p + TARGET * E + mine, (found % POSITIONS).to(tl.int64), mask=replaced)


@triton.jit(do_not_specialize=tuple(range(13)))
def apply(
    ids_p, weights_p, new_ids_p, new_weights_p, budgets_p, num_tokens_p, limits_p, substitutes_p, buffer_p,
    counters_p, T, N, given,
    K: tl.constexpr, KP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, R: tl.constexpr,
    KIND: tl.constexpr, SCALED: tl.constexpr, MERGE: tl.constexpr, SENTINEL: tl.constexpr,
):  # fmt: skip
    """Steps 6 to 9 for R rows."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    at, there, ids, bits = load_slots(ids_p, weights_p, rows, T, K, KP)
    budget = row_budgets(budgets_p, limits_p, rows, T, real_rows(num_tokens_p, T, N, given), given, K)
    lowest = tl.load(buffer_p + STEP * E + LOWEST).to(tl.int32)
    # Without a primary expert nothing changes: then no id is one of an expert.
    inside = there & (ids >= 0) & (ids < tl.where(lowest < E, E, 0))
    padding = inside & (budget < 0)[:, None]
    given_weight = value_of(bits, KIND).to(tl.float64)
    valid = inside & (budget >= 0)[:, None] & ((given_weight < 0) | (given_weight > 0))
    merging = padding | valid
    weight = tl.where(valid, given_weight, 0.0)

    old = tl.where(merging, ids, 0).to(tl.int32)
    expert = tl.load(buffer_p + TARGET * E + old, mask=valid, other=0).to(tl.int32)
    expert = tl.where(padding, lowest, expert)
    changes = valid & (expert != old)
    stays = valid | ~valid
    if SCALED:
        pair_p = substitutes_p + 2 * (old * E + expert)
        factor = tl.load(pair_p, mask=changes, other=1.0).to(tl.float64)
        similarity = tl.load(pair_p + 1, mask=changes, other=1.0).to(tl.float64)
        square = weight * weight
        weight = tl.where(changes, weight * factor, weight)
        least_gain = tl.load(limits_p + LIMITS - 1)
        if least_gain != 0:
            energy = column(square, 0, KP)
            for j in range(1, K):
                energy += column(square, j, KP)
            share = -least_gain.to(tl.float64) / GAIN_UNITS
            # Not at least: where a gain is not known, NaN, the slot stays.
            stays = ~(changes & (square * similarity < (share * energy)[:, None]))
    freed = padding & ~padding
    if MERGE != MERGE_NONE:
        weight, freed, stays = merge_row(expert, weight, merging, stays, K, KP)
    if MERGE == MERGE_DISTINCT:
        held = tl.where(merging, expert, tl.where(inside, ids, -1)).to(tl.int32)
        expert = fill_distinct(held, freed, buffer_p + STATE * E, E, EP)
    weight = tl.where(stays, weight, 0.0)

    new_ids = tl.where(merging, expert, ids)
    if MERGE == MERGE_SENTINEL:
        new_ids = tl.where(merging & (padding | freed | ~stays), SENTINEL, new_ids)
    new_bits = tl.where(padding, 0, bits)
    if SCALED or MERGE != MERGE_NONE:
        # A slot that does not change keeps its bits.
        new_bits = tl.where(merging, bits_of(weight, KIND), bits)
    tl.store(new_ids_p + at, new_ids.to(new_ids_p.dtype.element_ty), mask=there)
    tl.store(new_weights_p + at, new_bits.to(new_weights_p.dtype.element_ty), mask=there)
    if given & HAS_COUNTERS != 0:
        rerouted, computed = changes.to(tl.int64), (valid & (weight != 0)).to(tl.int64)
        tl.atomic_add(counters_p + SLOTS_REROUTED, tl.sum(tl.sum(rerouted, axis=1), axis=0))
        tl.atomic_add(counters_p + SLOTS_COMPUTED, tl.sum(tl.sum(computed, axis=1), axis=0))
