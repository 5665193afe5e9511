"""M by the rows of a step: numbers, shares, points and ``"auto"`` (docs/method.md section 4)."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sere.config import MOST_INT, LayerSettings, RerouteConfig
from sere.errors import ConfigError
from sere.reroute import prepare_layer
from sere.reroute.constants import LIMIT_ROWS
from sere.reroute.limits import active_by_rows, auto_active_experts, exact_rows, layer_limits
from sere.similarity.layer import LayerSimilarity
from tests.support.batches import similarity_matrix

ROWS = range(1, LIMIT_ROWS + 1)
EVERY_POINT = st.lists(
    st.tuples(st.integers(1, 300), st.integers(0, 70)),
    min_size=1,
    max_size=6,
    unique_by=lambda point: point[0],
).map(lambda points: tuple(sorted(points)))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [(0, 0), (24, 24), (65, 64), (0.25, 16), (0.001, 1), (1.0, 64), (((8, 12),), 12)],
    ids=["none", "a number", "more than E", "a share", "a small share", "all of them", "one point"],
)
def test_m_that_rows_do_not_change(setting: Any, expected: int) -> None:
    """Of 64 experts a layer reads at most that many, however many rows there are."""
    assert active_by_rows(setting, 64) == [expected] * LIMIT_ROWS


def test_m_by_rows_worked_by_hand() -> None:
    """Constant before the first and after the last point, a straight line between them, rounded up."""
    points = ((2, 8), (5, 10), (7, 9), (9, 99))
    assert active_by_rows(points, 64)[:10] == [8, 8, 9, 10, 10, 10, 9, 54, 64, 64]
    assert active_by_rows(points, 64)[10:] == [64] * (LIMIT_ROWS - 10)


@given(points=EVERY_POINT)
def test_m_is_exact_at_points_and_rounded_up_between_them(points: tuple[tuple[int, int], ...]) -> None:
    """Every number of rows has the line's value in exact fractions, rounded up, or E if that is less."""
    found = active_by_rows(points, 64)
    for rows, most in points:
        if rows <= LIMIT_ROWS:
            assert found[rows - 1] == min(64, most)
    for (r0, m0), (r1, m1) in pairwise(points):
        for rows in range(r0, min(r1, LIMIT_ROWS) + 1):
            line = m0 + Fraction((m1 - m0) * (rows - r0), r1 - r0)
            assert found[rows - 1] == min(64, math.ceil(line))


@given(points=EVERY_POINT)
def test_points_that_grow_give_an_m_that_grows(points: tuple[tuple[int, int], ...]) -> None:
    """Between points in order M never falls."""
    rows, most = zip(*points, strict=True)
    found = active_by_rows(tuple(zip(rows, sorted(most), strict=True)), 64)
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("E", "K"), [(9, 2), (60, 4), (96, 25), (64, 6), (128, 8), (256, 8), (512, 10), (16, 16)]
)
def test_auto_is_the_documented_formula(E: int, K: int) -> None:
    """K at one row, so that nothing changes there; K (1 + 0.75 log2 rows) at 2, 4, ... 256; never above E."""
    found = active_by_rows("auto", E, K)
    assert found[0] == K
    assert max(found) <= E
    assert found == sorted(found)
    # Four times the logarithm's factor is a whole number: in integers nothing is rounded by accident.
    assert [found[2**n - 1] for n in range(9)] == [min(E, -(-K * (4 + 3 * n) // 4)) for n in range(9)]
    assert [rows for rows, _ in auto_active_experts(E, K)] == [2**n for n in range(9)]


def test_auto_of_models_that_people_serve() -> None:
    """Mixtral, with 8 experts, is left alone; a layer of 256 experts reads 56 at 256 rows."""
    for E, K in ((8, 2), (4, 4), (1, 1)):
        assert active_by_rows("auto", E, K) == [E] * LIMIT_ROWS
    assert [active_by_rows("auto", 256, 8)[rows - 1] for rows in (1, 8, 16, 32, 64, 256)] == [
        8,
        26,
        32,
        38,
        44,
        56,
    ]


def test_auto_needs_the_number_of_slots() -> None:
    """Without K the text says what to give; the layer is refused the same way, when it is prepared."""
    text = r'active_experts: "auto" depends on the slots per token \(K\); give top_k or a number'
    with pytest.raises(ConfigError, match=text):
        active_by_rows("auto", 64)
    with pytest.raises(ConfigError, match=text):
        prepare_layer(LayerSimilarity(similarity_matrix(8, 0)), RerouteConfig())


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (0, 0), (3, 0), (4, 1), (11, 2), (15, 3), (16, MOST_INT), ("auto", 1),
        (((1, 4), (2, 8), (3, 11)), 2), (((1, 3), (2, 8)), 0), (((1, 8), (2, 7)), 1),
        (((4, 16), (5, 3)), 4), (((200, 16), (201, 15)), 200), (((1, 4), (4, 16)), MOST_INT),
    ],
)  # fmt: skip
def test_up_to_how_many_rows_all_experts_fit(setting: Any, expected: int) -> None:
    """With 4 slots per row and 16 experts: the most rows whose slots fit into M, and those of fewer rows."""
    limits = layer_limits(LayerSettings(active_experts=setting), 16, 4)
    assert exact_rows(limits, 16, 4) == expected


def test_more_rows_than_limits_may_fit() -> None:
    """From 256 rows on M is the last one: of 2,048 experts 1,040 are those of 260 rows of four."""
    limits = layer_limits(LayerSettings(active_experts=1040), 2048, 4)
    assert exact_rows(limits, 2048, 4) == 260


@pytest.mark.parametrize(("least", "expected"), [(0, [2, 6, 10]), (5, [5, 6, 10]), (99, [16, 16, 16])])
def test_m_may_have_a_least_value(least: int, expected: list[int]) -> None:
    """Where an expert kernel needs full rows M is at least K, but never above E."""
    limits = layer_limits(LayerSettings(active_experts=((1, 2), (3, 10))), 16, least_active=least)
    assert limits[1:4].tolist() == expected


def test_limits_are_s_then_m_for_every_number_of_rows_then_the_least_gain() -> None:
    """What kernels read: int32, on the host, whatever the default device is; the gain is negative."""
    settings = LayerSettings(select_top_k=3, active_experts=((1, 4), (3, 8)), min_gain=0.25)
    limits = layer_limits(settings, 16)
    assert limits.tolist() == [3, 4, 6, *[8] * (LIMIT_ROWS - 2), -(2**28)]
    assert (str(limits.dtype), limits.device.type) == ("torch.int32", "cpu")
