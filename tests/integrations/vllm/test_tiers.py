"""A request's own quality tier: what is accepted and refused."""

from __future__ import annotations

from typing import Any

import pytest

from sere.errors import ConfigError
from sere.integrations.vllm.tiers import PROTECTED, parse_tier


@pytest.mark.parametrize(
    ("value", "budget"),
    [
        (None, None), ("off", PROTECTED), (3, 3), ({"select_top_k": 8}, 8), ('{"select_top_k": 8}', 8),
        ("4", 4), (10**12, PROTECTED),
    ],
)  # fmt: skip
def test_tiers(value: Any, budget: int | None) -> None:
    """A tier is "off", S, or a mapping with S, which may be JSON text."""
    assert parse_tier({"sere": value, "other": 1}) == budget


@pytest.mark.parametrize("value", ["of", "", 0, -1, True, 1.5, [1], {}, {"select_top_k": "1"}, "[1]", "null"])
def test_wrong_tiers(value: Any) -> None:
    """What is no tier is refused with what would be."""
    with pytest.raises(ConfigError, match=r'sere: expected "off", or \{"select_top_k": S\}'):
        parse_tier({"sere": value})


def test_wrong_key_of_a_tier() -> None:
    """A request cannot set anything but S; the nearest name is given."""
    with pytest.raises(ConfigError, match=r"a request cannot set 'select_topk'; did you mean 'select_top_k'"):
        parse_tier({"sere": {"select_topk": 2}})


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "value",
    [DEEP, "9" * 5000, -(10**5000), "x" * 10_000, {"select_top_k": "9" * 5000}],
    ids=["deep", "digits", "integer", "text", "nested"],
)
def test_hostile_tiers(value: Any) -> None:
    """A value too deep, too long or with too many digits is refused like any other, in a short text."""
    with pytest.raises(ConfigError, match='sere: expected "off"') as refused:
        parse_tier({"sere": value})
    assert len(str(refused.value)) < 500
