"""When pairs are taken instead of all slots."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sere.flatten import Costs, Flattening, PairCounts, Pairs, costs_of, measure
from sere.flatten.costs import ROUNDS, ROWS, break_even


@pytest.mark.parametrize(
    ("slots", "half", "full", "share"),
    [
        (100.0, 50.0, 101.0, 0.96078),
        (100.0, 60.0, 120.0, 0.80833),
        (100.0, 97.0, 160.0, 0.5),
        (100.0, 98.0, 101.0, 1 / 3),
        (100.0, 110.0, 160.0, 0.37),
        (100.0, 200.0, 210.0, 0.0),
        (100.0, 40.0, 50.0, 1.0),
        (100.0, 90.0, 80.0, 0.5),
        (100.0, 98.0, 98.0, 0.0),
    ],
    ids=[
        "arithmetic",
        "with a price",
        "half is even",
        "memory",
        "price",
        "never",
        "always",
        "odd",
        "odd, even",
    ],
)
def test_break_even(slots: float, half: float, full: float, share: float) -> None:
    """On the straight line through both times of pairs, 3 % below that of all slots."""
    assert break_even(slots, half, full, kept=4, K=8) == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize(
    ("T", "most"),
    [
        *[
            (1, 0),
            (2, 0),
            (4, 16),
            (7, 28),
            (8, 38),
            (9, 43),
            (16, 96),
            (17, 102),
            (31, 186),
            (32, 192),
            (33, 184),
        ],
        *[(48, 268), (64, 358), (512, 2867)],
    ],
)
def test_pairs_close_to_all_slots_are_not_worth_it(T: int, most: int) -> None:
    """Up to a share of T x 8 slots; between two measured numbers of rows, the smaller of both."""
    assert Costs((0.0, 0.5, 0.6, 0.75, 0.75, 0.7)).most_pairs(T, 8) == most


def test_what_is_measured() -> None:
    """All slots, and half and all of them as pairs, at each number of rows, over equally many experts."""
    seen: list[tuple[str, int, int, int]] = []

    def slots(ids: Tensor, weights: Tensor) -> None:
        assert weights.shape == ids.shape
        seen.append(("slots", len(ids), ids.numel(), len(ids.unique())))

    def pairs(found: Pairs, T: int) -> None:
        assert found.rows.unique().tolist() == list(range(T))
        seen.append(("pairs", T, len(found.rows), len(found.ids.unique())))

    form = {"ids_dtype": torch.int64, "weights_dtype": torch.float32}
    found = measure(slots, pairs, E=32, K=4, **form)
    assert len(found.shares) == len(ROWS)
    assert all(0 <= share <= 1 for share in found.shares)
    expected = []
    for T, distinct in zip(ROWS, (2, 8, 13, 16, 19, 22), strict=True):
        kinds = (("slots", 4 * T), ("pairs", 2 * T), ("pairs", 4 * T))
        expected += [(kind, T, n, distinct) for kind, n in kinds] * ROUNDS
    assert seen == expected
    assert measure(slots, pairs, E=32, K=1, **form).shares == (0.0,) * len(ROWS)


def test_a_kind_of_layer_is_measured_once() -> None:
    """And again with another number of threads, which changes the times."""
    measured = [Costs((0.1,) * len(ROWS)), Costs((0.2,) * len(ROWS))]
    key = object()
    first = costs_of(key, measured.pop)
    assert costs_of(key, measured.pop) is first
    assert len(measured) == 1


def test_counts_of_layers_add_up() -> None:
    """The engine's numbers are the sums of its layers'; a reason stays, and the log line says it."""
    one, other = PairCounts(), PairCounts(whole=2)
    one.add(64, 40)
    other.add(64, 24)
    found = Flattening.of("auto", None, [one.to_list(), other.to_list()])
    assert found == Flattening("auto", None, steps=2, slots=128, pairs=64, whole=2)
    assert found.describe() == "50 % of the slots computed in flattened steps"
    assert Flattening.of("off", "flatten is 'off'", []).describe() == "all slots computed (flatten is 'off')"
    one.reset()
    assert one == PairCounts()
